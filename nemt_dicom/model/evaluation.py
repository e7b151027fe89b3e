"""The figures of a bundle, as `nemt-eval` measures them: `evaluation.json` of a bundle.

One frozen tree. The trainer builds it once; the report, the model card, the checks and
`nemt-dicom bundle show` read it by attribute. A figure that does not exist for the data or for the
kind of bundle is None, or its key is absent from a dictionary. NaN and infinity are refused: they
have no form in JSON, and a figure that is not defined is None. No patient data.
"""

from pydantic import BaseModel, ConfigDict, Field

EXPLANATION_MODULE = "nemt"
"""Key of the explanation module among the methods."""


class Frozen(BaseModel):
    """A value of the tree: immutable, finite, with no field that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Figure(Frozen):
    """A figure with its 95 % bootstrap interval over patients.

    mean: the mean over images; for a figure that is no mean (an AUC, a ratio), its value.
    lo: the lower end of the interval.
    hi: the upper end of the interval.
    n: how many images the figure is of.
    No number is NaN or infinite.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    mean: float
    lo: float
    hi: float
    n: int


class CodeState(Frozen):
    """The code that made a result.

    version: the release.
    commit: the git commit, or "unknown".
    dirty: whether the sources differ from the commit; None if that is unknown.
    sources: SHA-256 of the Python sources.
    """

    version: str
    commit: str
    dirty: bool | None
    sources: str


class Scope(Frozen):
    """The images of an evaluation, and the code and the device that made it.

    split: "train", "validation" or "test".
    images: number of images read.
    positives: number of these images with the target.
    with_ground_truth: positives that have boxes or a lesion mask.
    unreadable: images that could not be read and were left out.
    fingerprint: SHA-256 of the names and labels of the images.
    thorough: whether the further tests were made.
    device: name of the processor, for people.
    """

    split: str
    images: int
    positives: int
    with_ground_truth: int
    unreadable: int
    patients: int
    sources: tuple[str, ...]
    fingerprint: str
    notes: tuple[str, ...]
    thorough: bool
    device: str
    code: CodeState


class Check(Frozen):
    """A yes-or-no question about the mask, its answer, and the figure behind it in words."""

    question: str
    passed: bool
    figure: str


class Decisions(Frozen):
    """Sensitivity and specificity at the bundle's decision threshold."""

    sensitivity: Figure | None = None
    specificity: Figure | None = None


class MaskArea(Frozen):
    """Mean of the soft mask before any threshold, as a share of the image, by label.

    negatives_over_positives: the ratio of the two means.
    """

    positives: Figure | None = None
    negatives: Figure | None = None
    negatives_over_positives: Figure | None = None


class Drawn(Frozen):
    """Share of images on which the service draws a segment.

    boxed: share of the images with ground truth.
    boxed_verdicts: number of these images by verdict.
    """

    positives: Figure | None = None
    negatives: Figure | None = None
    boxed: Figure | None = None
    boxed_verdicts: dict[str, int] = Field(default_factory=dict)


class Scores(Frozen):
    """The metrics of one method's maps. The names are those of Quantus, if it has the metric.

    relevance_rank, relevance_mass: agreement of the map with the ground truth (higher is better).
    *_less_others: the same minus the mean score of the method's maps of all other images.
    complexity: of the map (lower is better).
    sparseness: of the map (higher is better).
    faithfulness: of the map (higher is better).
    deletion_*: area under p while pixels are removed.
    insertion_*: area under p while pixels are shown on the fill.
    road: ROAD.
    area: mean of the map.
    """

    relevance_rank: Figure | None = None
    relevance_mass: Figure | None = None
    relevance_rank_less_others: Figure | None = None
    relevance_mass_less_others: Figure | None = None
    pointing_game: Figure | None = None
    iou: Figure | None = None
    complexity: Figure | None = None
    sparseness: Figure | None = None
    faithfulness: Figure | None = None
    deletion_black: Figure | None = None
    deletion_blur: Figure | None = None
    insertion_black: Figure | None = None
    insertion_blur: Figure | None = None
    road: Figure | None = None
    area: Figure | None = None


class Seconds(Frozen):
    """Seconds for each image.

    single: one image at a time. batch: the mean in a batch of 32; None if the method is too slow.
    """

    single: Figure
    batch: Figure | None = None


class MethodResult(Frozen):
    """All figures of one attribution method.

    library: the code that computed the maps.
    settings: of the method, in words.
    asked: number of images that the method was asked for.
    failed: number of images on which it failed.
    failures: the different reasons.
    scores: its metrics.
    nemt_less: the explanation module's metrics less this method's, paired by image.
    nemt_over: the explanation module's mean over this method's (mass and rank).
    curves: mean deletion and insertion curve for each fill; only in a report.
    """

    name: str
    library: str
    settings: str
    asked: int
    failed: int
    failures: tuple[str, ...]
    scores: Scores
    nemt_less: Scores | None = None
    nemt_over: Scores | None = None
    seconds: Seconds | None = None
    curves: dict[str, tuple[float, ...]] = Field(default_factory=dict)


class RandomisedArea(Frozen):
    """Mean mask of the explanation module, on the trained and on each randomised target model."""

    trained: float
    cascading: tuple[float, ...] = ()
    independent: tuple[float, ...] = ()


class RandomisedMethod(Frozen):
    """Rank correlation of a method's maps with its maps of a randomised target model.

    cascading, independent: the mean for each group of layers, from the output to the input; None
    if the method fails on that model.
    fully_randomised: the figure for the wholly randomised model.
    survives: whether that correlation is so high that the map explains the image, not the model.
    """

    name: str
    cascading: tuple[float | None, ...] = ()
    independent: tuple[float | None, ...] = ()
    fully_randomised: Figure | None
    survives: bool
    area: RandomisedArea | None = None


class Randomisation(Frozen):
    """Dependence on the model's weights (J. Adebayo et al., NeurIPS 2018).

    layers: the groups of layers, from the output to the input.
    methods: by key.
    """

    layers: tuple[str, ...]
    methods: dict[str, RandomisedMethod]


class Stability(Frozen):
    """The effect on a mask of a change of the image that should change nothing.

    iou: overlap of the segments before and after.
    relevance_mass: mean absolute change of the score.
    relevance_rank: likewise.
    """

    iou: Figure
    relevance_mass: Figure | None = None
    relevance_rank: Figure | None = None


class Answers(Frozen):
    """The answers of a bundle to a group of images.

    area: mean of the mask.
    probability: p.
    drawn: share of images with a drawn segment.
    fall: fall of p without the segment, for the images that have one.
    """

    area: Figure
    probability: Figure | None = None
    drawn: Figure | None = None
    fall: Figure | None = None


class Subgroup(Frozen):
    """Figures of a subgroup.

    images: number of images.
    methods: metrics by key of the method.
    """

    images: int
    methods: dict[str, Scores]


class Evaluation(Frozen):
    """Everything that was measured of a bundle.

    scope: the images and the code.
    checks: the questions with their answers.
    metrics: how each metric is measured, in words.
    classifier: seconds of the target model's forward pass alone.
    truth_share: share of the image that the ground truth covers, which is chance for mass and rank.
    auc: of all images ("all") and of each source.
    methods: by key; the explanation module's is EXPLANATION_MODULE.
    subgroups, auc_by_subgroup: by property ("view", "sex", "age", "ground truth") and value; only
    in a report.
    randomisation, input_invariance, stability, silence: the further tests, if they were made;
    input_invariance and stability by method, silence by group of images.
    """

    scope: Scope
    checks: tuple[Check, ...]
    metrics: dict[str, str]
    classifier: Seconds
    mask_area: MaskArea
    methods: dict[str, MethodResult]
    truth_share: Figure | None = None
    auc: dict[str, Figure] = Field(default_factory=dict)
    decisions: Decisions | None = None
    drawn: Drawn | None = None
    subgroups: dict[str, dict[str, Subgroup]] = Field(default_factory=dict)
    auc_by_subgroup: dict[str, dict[str, Figure]] = Field(default_factory=dict)
    randomisation: Randomisation | None = None
    input_invariance: dict[str, Figure] = Field(default_factory=dict)
    stability: dict[str, dict[str, Stability]] = Field(default_factory=dict)
    silence: dict[str, Answers] = Field(default_factory=dict)

    @property
    def module(self) -> MethodResult:
        """The figures of the explanation module."""
        return self.methods[EXPLANATION_MODULE]

    def for_bundle(self) -> "Evaluation":
        """The part that a bundle keeps: everything but the curves and the subgroups."""
        methods = {k: m.model_copy(update={"curves": {}}) for k, m in self.methods.items()}
        return self.model_copy(update={"methods": methods, "subgroups": {}, "auc_by_subgroup": {}})
