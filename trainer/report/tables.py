"""The figures of an evaluation as Markdown tables: for report, model card and terminal."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..evaluation.methods import METHODS, NEMT
from ..markdown import show, table

Summary = dict[str, Any]

PAPER = {
    "relevance_rank": "relevance rank ↑",
    "relevance_mass": "relevance mass ↑",
    "complexity": "complexity ↓",
    "sparseness": "sparseness ↑",
    "faithfulness": "faithfulness ↑",
    "seconds": "s/image ↓",
}
"""The paper's table, in its order."""
FURTHER = {
    "pointing_game": "pointing game ↑",
    "iou": "IoU at the mask threshold ↑",
    "deletion_black": "deletion, black ↓",
    "deletion_blur": "deletion, blurred ↓",
    "insertion_black": "insertion, black ↑",
    "insertion_blur": "insertion, blurred ↑",
    "road": "ROAD ↑",
}
SUBGROUP_METHODS = (NEMT, "gradcam++", "mean_of_boxes")


def splits_table(splits: Mapping[str, Mapping[str, int]]) -> str:
    """Counts of each split, by name: a manifest sorts its keys."""
    counts = ("images", "positives", "patients")
    rows = [[name, *(str(row[count]) for count in counts)] for name, row in splits.items()]
    return table(["split", *counts], rows)


def ordered(rows: Iterable[str]) -> list[str]:
    """Methods as the registry has them, others after them: a manifest sorts its keys."""
    known = list(METHODS)
    return sorted(rows, key=lambda key: (known.index(key) if key in known else len(known), key))


def figures_table(summary: Summary) -> str:
    """The figures that are not about where a map lies."""
    found = [(f"AUC, {name}", value) for name, value in summary.get("auc", {}).items()]
    for group, name, text in (
        ("decisions", "sensitivity", "sensitivity at the decision threshold"),
        ("decisions", "specificity", "specificity at the decision threshold"),
        ("mask_area", "positives", "soft mask's mean area on positives, before gating"),
        ("mask_area", "negatives", "soft mask's mean area on negatives, before gating"),
        ("mask_area", "negatives_over_positives", "the latter over the former"),
        ("drawn", "boxed", "share of images with ground truth that get a segment"),
        ("drawn", "positives", "share of positives that get a segment"),
        ("drawn", "negatives", "share of negatives that get a segment"),
    ):
        if name in summary.get(group, {}):
            found.append((text, summary[group][name]))
    rows = [[text, show(value), str(value["n"])] for text, value in found]
    value = summary["classifier"]["seconds"]
    text = "seconds an image, the classifier's forward pass alone"
    rows.append([text, show(value, 4), str(value["n"])])
    return table(["figure", "value (95 % interval)", "images"], rows)


def paper_table(summary: Summary) -> str:
    """The paper's table: every method's figures with their intervals.

    Where a figure is of fewer images than there are, it says of how many.
    """
    return _methods_table(summary, PAPER)


def further_table(summary: Summary) -> str:
    """What the paper does not measure: removal curves, pointing game, overlap, ROAD."""
    rows = summary["methods"].values()
    return _methods_table(
        summary, {k: v for k, v in FURTHER.items() if any(k in row for row in rows)}
    )


def _methods_table(summary: Summary, columns: dict[str, str]) -> str:
    most = max(row["asked"] for row in summary["methods"].values())
    rows = []
    for method in ordered(summary["methods"]):
        row = summary["methods"][method]
        cells = [_cell(row.get(name), most, name) for name in columns]
        rows.append([_name(row, most), *cells])
    return table(["method", *columns.values()], rows)


def _name(row: dict[str, Any], most: int) -> str:
    name = str(row["name"])
    if row["asked"] < most:
        name += f", {row['asked']} of {most} images"
    if row["failed"]:
        name += f", failed on {row['failed']}"
    return name


def _cell(figure: dict[str, float] | None, most: int, name: str) -> str:
    if figure is None:
        return "not defined"
    text = show(figure, 4 if name == "seconds" else 3)
    return f"{text}, n = {figure['n']}" if name != "seconds" and figure["n"] < most else text


def differences_table(summary: Summary) -> str:
    """Own less others of every method, and the explanation module against each of the others."""
    rows = []
    for method in ordered(summary["methods"]):
        found = summary["methods"][method]
        less, over = found.get("nemt_less", {}), found.get("nemt_over", {})
        cells = [str(found["name"])]
        for name in ("relevance_rank", "relevance_mass"):
            own = f"{name}_less_others"
            cells += [show(found.get(own)), show(less.get(own)), show(over.get(name), 2)]
        rows.append(cells)
    ours = METHODS[NEMT].name
    heads = ["method"]
    for name in ("rank", "mass"):
        heads += [f"{name}, own less others", f"{ours} less this", f"{name}: {ours} over this"]
    return table(heads, rows)


def faithfulness_table(summary: Summary) -> str:
    """The explanation module's measures of faithfulness less each other method's, paired."""
    names = ("faithfulness", "deletion_black", "deletion_blur", "insertion_black",
             "insertion_blur", "road")  # fmt: skip
    rows = [
        [str(found["name"]), *(show(found["nemt_less"].get(name)) for name in names)]
        for found in (summary["methods"][key] for key in ordered(summary["methods"]))
        if "nemt_less" in found
    ]
    return table(["explanation module less", *(name.replace("_", ", ") for name in names)], rows)


def time_table(summary: Summary) -> str:
    """Seconds an image, one at a time and in a batch, and how much longer than the module."""
    ours = summary["methods"][NEMT]
    rows = []
    for found in (
        {"name": "the classifier's forward pass", **summary["classifier"]},
        *(summary["methods"][key] for key in ordered(summary["methods"])),
    ):
        cells = [str(found["name"])]
        for name in ("seconds", "seconds_in_batch"):
            own, base = found.get(name), ours.get(name)
            cells.append("-" if own is None else f"{own['mean']:.3g}")
            cells.append("-" if not own or not base else f"{own['mean'] / base['mean']:.3g}")
        rows.append(cells)
    return table(
        ["method", "s/image, one at a time", "times the module's", "s/image, batch of 32",
         "times the module's"],
        rows,
    )  # fmt: skip


def methods_list(summary: Summary) -> str:
    """Which library computed each method's maps, and how; and what failed."""
    lines = []
    for found in (summary["methods"][method] for method in ordered(summary["methods"])):
        lines.append(f"- {found['name']}: {found['library']}; {found['settings']}")
        if found["failed"]:
            lines.append(f"  - failed on {found['failed']} images: {'; '.join(found['failures'])}")
    return "\n".join(lines)


def subgroup_table(summary: Summary) -> str:
    """Mass and rank of the main methods by subgroup, and the classifier's AUC."""
    methods = [key for key in SUBGROUP_METHODS if key in summary["methods"]]
    aucs = summary.get("auc_by_subgroup", {})
    rows = []
    for group, values in summary["subgroups"].items():
        for value, found in values.items():
            cells = [f"{group}: {value}", str(found["images"])]
            for key in methods:
                row = found["methods"].get(key, {})
                cells += [show(row.get("relevance_mass")), show(row.get("relevance_rank"))]
            auc = aucs.get(group, {}).get(value)
            cells.append("-" if auc is None else f"{show(auc)}, n = {auc['n']}")
            rows.append(cells)
    heads = ["subgroup", "images"]
    for key in methods:
        name = summary["methods"][key]["name"]
        heads += [f"mass, {name}", f"rank, {name}"]
    return table([*heads, "AUC, all images"], rows)


def randomisation_table(summary: Summary) -> str:
    """How like the maps stay when the target model is randomised."""
    found = summary["randomisation"]
    rows = []
    for key in ordered(key for key in found if key != "layers"):
        row = found[key]
        rows.append(
            [
                row["name"],
                show(row["fully_randomised"]),
                "**FAILS: survives**" if row["survives"] else "no",
                _series(row["cascading"]),
                _series(row["independent"]),
            ]
        )
    return table(
        ["method", "rank correlation, wholly randomised", "survives?",
         "cascading, output to input", "independent, output to input"],
        rows,
    )  # fmt: skip


def _series(values: Sequence[float | None]) -> str:
    return ", ".join("-" if value is None else f"{value:.2f}" for value in values)


def invariance_table(summary: Summary) -> str:
    """How like the maps stay when a shift is added to the input and taken away again."""
    found = summary["input_invariance"]
    rows = [[summary["methods"][key]["name"], show(found[key])] for key in ordered(found)]
    return table(["method", "rank correlation, 1 = invariant"], rows)


def stability_table(summary: Summary) -> str:
    """Overlap of the segments, and change of mass, under each change."""
    rows = []
    for key in ordered(summary["stability"]):
        for change, row in summary["stability"][key].items():
            cells = [summary["methods"][key]["name"], change, show(row["iou"])]
            rows.append(cells + [show(row.get(m)) for m in ("relevance_mass", "relevance_rank")])
    return table(
        ["method", "change", "IoU of the segments ↑", "change of mass ↓", "change of rank ↓"], rows
    )


def silence_table(summary: Summary) -> str:
    """What is said of images with and without the target, and of what is no such image."""
    names = ("probability", "area", "drawn", "fall")
    rows = [
        [name, str(found["area"]["n"]), *(show(found.get(figure)) for figure in names)]
        for name, found in summary["silence"].items()
    ]
    heads = ["images", "n", "p", "mask's area", "share with a segment", "fall of p without it"]
    return table(heads, rows)


def checks_table(summary: Summary) -> str:
    """The questions with their answers."""
    rows = [
        [check["question"], "yes" if check["passed"] else "**NO**", check["figure"]]
        for check in summary["checks"]
    ]
    return table(["question", "answer", "figure"], rows)
