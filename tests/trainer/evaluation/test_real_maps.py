"""Methods and metrics on real radiographs with the bundle that ships, against their libraries."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from nemt_dicom.model.bundle import Bundle
from nemt_dicom.model.network import ExplainedNetwork
from trainer.arrays import Maps
from trainer.data.cases import find_cases_to_evaluate
from trainer.data.examples import default_cache, load_examples
from trainer.data.ground_truth import ground_truth
from trainer.evaluation.methods import methods
from trainer.evaluation.settings import EvaluationSettings
from trainer.metrics import (
    complexity,
    faithfulness,
    features_in_step,
    min_max,
    pointing_game,
    relevance_mass,
    relevance_rank,
    sparseness,
)

pytestmark = pytest.mark.realdata

COUNT = 2
STEPS = 8
METHODS = methods(EvaluationSettings(gradient_steps=STEPS))
Case = tuple[ExplainedNetwork, np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def boxed(real_data: Path) -> Case:
    """The network, two boxed test images of RSNA (2, 1, S, S), and their boxes (2, S, S)."""
    bundle = Bundle.load()
    dataset = find_cases_to_evaluate(
        [real_data / "rsna-mini"],
        target="pneumonia",
        split="test",
        photographs=False,
        validation_share=0.15,
        trained_on=["RSNA"],
    )
    cases = [case for case in dataset.cases if case.split == "test" and case.label][:COUNT]
    examples = load_examples(cases, bundle.preprocessing, cache=default_cache(), done=lambda: None)
    rows, truth = ground_truth(examples)
    assert len(rows) == COUNT
    return bundle.network("cpu"), examples.take(rows), truth


@pytest.fixture(scope="module")
def maps(boxed: Case) -> Maps:
    network, images, _ = boxed
    return METHODS["nemt"].maps(network, images)


def test_class_activation_maps_are_grad_cams(boxed: Case) -> None:
    network, images, _ = boxed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pytorch_grad_cam
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    model = network.target_model
    layer = model.get_submodule(model.feature_info[-1]["module"])
    x = network.normalise(torch.from_numpy(images)).requires_grad_(True)
    for key, name in (
        ("gradcam++", "GradCAMPlusPlus"),
        ("gradcam", "GradCAM"),
        ("hirescam", "HiResCAM"),
    ):
        with getattr(pytorch_grad_cam, name)(model=model, target_layers=[layer]) as cam:
            expected = cam(
                input_tensor=x, targets=[ClassifierOutputTarget(network.target_index)] * COUNT
            )
        assert METHODS[key].maps(network, images) == pytest.approx(expected, abs=1e-6)


def test_gradient_methods_are_captums(boxed: Case) -> None:
    from captum.attr import GradientShap, IntegratedGradients

    network, images, _ = boxed
    x = torch.from_numpy(images)
    found = IntegratedGradients(network.logits).attribute(
        x, baselines=0.0, target=network.target_index, n_steps=STEPS, internal_batch_size=16
    )
    expected = found.sum(dim=1).abs().detach().numpy()
    maps = METHODS["integrated_gradients"].maps(network, images)
    assert maps == pytest.approx(expected, abs=1e-6)
    state = np.random.get_state()
    np.random.seed(0)
    found = GradientShap(network.logits).attribute(
        x, baselines=torch.zeros_like(x[:1]), target=network.target_index, n_samples=5
    )
    np.random.set_state(state)
    expected = found.sum(dim=1).abs().detach().numpy()
    assert METHODS["gradient_shap"].maps(network, images) == pytest.approx(expected, abs=1e-6)


def test_metrics_are_quantus(boxed: Case, maps: Maps) -> None:
    import quantus

    network, images, truth = boxed
    found = {
        "RelevanceMassAccuracy": np.diag(relevance_mass(list(maps), list(truth))),
        "RelevanceRankAccuracy": np.diag(relevance_rank(list(maps), list(truth))),
        "PointingGame": pointing_game(list(maps), list(truth)),
        "Complexity": complexity(list(maps)),
        "Sparseness": sparseness(list(maps)),
        "FaithfulnessEstimate": faithfulness(list(maps), images, network.probability),
    }
    stretched = np.stack([min_max(m) for m in maps])[:, None]
    for name, ours in found.items():
        settings = (
            {"features_in_step": features_in_step(images.shape[-1]), "perturb_baseline": "black"}
            if name == "FaithfulnessEstimate"
            else {}
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            metric = getattr(quantus, name)(
                abs=False, normalise=False, disable_warnings=True, **settings
            )
            theirs = metric(
                model=_Probability(network).eval(),
                x_batch=images.copy(),
                y_batch=np.zeros(COUNT, int),
                a_batch=stretched.copy(),
                s_batch=truth[:, None],
                channel_first=True,
                softmax=False,
                device="cpu",
            )
        assert ours == pytest.approx(np.array(theirs, float), abs=1e-6), name


class _Probability(torch.nn.Module):
    def __init__(self, network: ExplainedNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return self.network.probability(images)[:, None]
