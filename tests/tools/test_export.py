"""Other formats: each is read by its own library alone, and gives the logits of the original."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import PYTHON, call
from safetensors.torch import save, save_file

from mnist_dist.core import UserError
from mnist_dist.digits.trained import METADATA, TrainedModel, locate
from mnist_dist.run import weights
from mnist_dist.task import networks
from mnist_dist.tools import export


@pytest.fixture(
    scope="module",
    params=[("mlp", (128, 64)), ("mlp", ()), ("cnn", ())],
    ids=["mlp", "linear", "cnn"],
)
def trained(request, tmp_path_factory):
    """A model file of each kind, and images with the logits that it gives for them."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("export")
    model = networks.build(*request.param).eval()
    weights.save_weights(folder / "mnist_model.pth", model)
    images = torch.randn(5, 1, 28, 28)
    with torch.no_grad():
        return locate(folder / "mnist_model.pth"), images, model(images)


def test_safetensors(trained, tmp_path):
    from safetensors import safe_open

    model, images, logits = trained
    assert export.export(model, "safetensors", tmp_path / "m.safetensors") < 1e-6
    with safe_open(tmp_path / "m.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        assert json.loads(file.metadata()["mnist_dist"]) == {
            "dataset": "auto",
            "val_size": 0,
            "seed": 0,
            "mean": 0.1307,
            "std": 0.3081,
        }
    assert weights.fingerprint(tensors) == weights.fingerprint(weights.load_weights(model.weights))
    with torch.no_grad():
        again = networks.from_state_dict(weights.load_weights(tmp_path / "m.safetensors"))(images)
    assert torch.allclose(again, logits, atol=1e-6)


def test_a_safetensors_file_says_what_data_it_was_trained_on(trained, tmp_path):
    fashion = replace(
        trained[0], dataset="fashion-mnist", val_size=500, seed=3, mean=0.286, std=0.353
    )
    export.export(fashion, "safetensors", tmp_path / "m.safetensors")
    assert locate(tmp_path / "m.safetensors") == replace(
        fashion, weights=tmp_path / "m.safetensors"
    )
    tensors = weights.load_weights(fashion.weights)
    save_file(tensors, tmp_path / "foreign.safetensors")
    assert locate(tmp_path / "foreign.safetensors") == TrainedModel(
        tmp_path / "foreign.safetensors"
    )
    for content in ('{"mean": "small"}', "[]", "{"):
        save_file(tensors, tmp_path / "odd.safetensors", metadata={METADATA: content})
        with pytest.raises(
            UserError, match=r"the settings in .*odd\.safetensors are not those of a run"
        ):
            locate(tmp_path / "odd.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"no weights here")
    with pytest.raises(UserError, match="is damaged"):
        weights.load_weights(locate(tmp_path / "bad.safetensors").weights)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_a_safetensors_file_has_the_precision_of_the_model(dtype, tmp_path):
    model = networks.build("cnn", (8,), (2,)).to(dtype)
    weights.save_weights(tmp_path / "mnist_model.pth", model)
    assert export.export(locate(tmp_path / "mnist_model.pth"), "safetensors", tmp_path / "m") < 1e-6
    (tmp_path / "m").rename(tmp_path / "m.safetensors")
    read = weights.load_weights(tmp_path / "m.safetensors")
    assert weights.fingerprint(read) == weights.fingerprint(model.state_dict())
    assert {tensor.dtype for tensor in read.values()} == {dtype}
    export.export(locate(tmp_path / "m.safetensors"), "torch-export", tmp_path / "m.pt2")
    torch.export.load(tmp_path / "m.pt2").module()(torch.zeros(1, 1, 28, 28))  # float32


@pytest.mark.parametrize("output", [None, "elsewhere/../m.safetensors"])
def test_a_model_is_not_written_over_itself(output, tmp_path):
    path = tmp_path / "m.safetensors"
    (tmp_path / "elsewhere").mkdir()
    save_file(networks.build("mlp", ()).state_dict(), path)
    before = path.read_bytes()
    config = export.Config(
        model=path, format="safetensors", output=tmp_path / output if output else None
    )
    with pytest.raises(UserError, match="is the model itself: name another file with --output"):
        export.main(config)
    assert path.read_bytes() == before


def test_torch_export(trained, tmp_path):
    model, images, logits = trained
    assert export.export(model, "torch-export", tmp_path / "m.pt2") < 1e-5
    found = torch.export.load(tmp_path / "m.pt2").module()(images)
    assert torch.allclose(found, logits, atol=1e-5)


def test_onnx(trained, tmp_path):
    from onnx import checker, load
    from onnx.reference import ReferenceEvaluator

    model, images, logits = trained
    assert export.export(model, "onnx", tmp_path / "m.onnx") < 1e-4
    assert {path.name for path in tmp_path.iterdir()} == {"m.onnx"}  # no file beside it
    checker.check_model(load(tmp_path / "m.onnx"), full_check=True)
    (found,) = ReferenceEvaluator(str(tmp_path / "m.onnx")).run(
        ["logits"], {"images": images.numpy()}
    )
    assert torch.allclose(torch.from_numpy(found), logits, atol=1e-4)


@pytest.mark.parametrize("kind", ["safetensors", "onnx", "torch-export"])
def test_a_file_that_gives_other_logits_is_not_kept(trained, kind, tmp_path, monkeypatch):
    """A writer that loses something: the file of before stays, and nothing else is left."""
    write = export.WRITERS[kind]

    def careless(model, images, path, trained):
        changed = networks.from_state_dict(
            {name: 1.01 * tensor for name, tensor in model.state_dict().items()}
        )
        return write(changed, images, path, trained)

    monkeypatch.setitem(export.WRITERS, kind, careless)
    (tmp_path / "m").write_text("of before")
    with pytest.raises(UserError, match=f"the {kind} file gives other logits"):
        export.export(trained[0], kind, tmp_path / "m")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["of before"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", export.SUFFIXES)
def test_a_full_disk_is_said_in_one_sentence(kind, tmp_path, small_disk):
    disk, remount = small_disk
    weights.save_weights(tmp_path / "mnist_model.pth", networks.build("mlp"))
    remount("size=100k")
    target = disk / f"m{export.SUFFIXES[kind]}"
    done = call(
        PYTHON, "-m", "mnist_dist", "export", tmp_path, "--format", kind, "--output", target
    )
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert f"the system refused '{target}': No space left on device" in done.stderr
    assert list(disk.iterdir()) == []


@pytest.mark.slow
def test_the_command_says_what_it_wrote_and_refuses_in_one_sentence(tmp_path):
    (tmp_path / "run").mkdir()
    model, target = tmp_path / "run" / "mnist_model.pth", tmp_path / "m.safetensors"
    weights.save_weights(model, networks.build("mlp", ()))
    done = call(
        PYTHON, "-m", "mnist_dist", "export", model, "--format", "safetensors", "--output", target
    )
    assert done.returncode == 0 and str(target) in done.stdout and target.exists(), done.stderr
    done = call(PYTHON, "-m", "mnist_dist", "export", tmp_path, "--format", "onnx")
    assert (
        done.returncode == 1
        and "there is no model at" in done.stderr
        and done.stderr.count("\n") == 1
    )
    done = call(PYTHON, "-m", "mnist_dist", "export", model, "--format", "onnx", "--output", model)
    assert (
        done.returncode == 2 and "give a .onnx file" in done.stderr and done.stderr.count("\n") == 1
    )
    done = call(PYTHON, "-m", "mnist_dist", "export", model, "--format", "keras")
    assert done.returncode == 2 and "'keras'" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("kind", export.SUFFIXES)
def test_a_folder_whose_name_is_not_utf_8_does_no_harm(kind, tmp_path, capsys):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/run-\xff"))
    folder.mkdir()
    weights.save_weights(folder / "mnist_model.pth", networks.build("mlp", ()))
    export.main(export.Config(model=folder, format=kind))
    target = folder / f"mnist_model{export.SUFFIXES[kind]}"
    assert target.stat().st_size > 10_000
    assert capsys.readouterr().out.startswith(
        f"{tmp_path}/run-?/{target.name}: its logits, read back, "
    )
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [target.name, "mnist_model.pth"]
    )


def test_what_was_exported_to_a_folder_whose_name_is_not_utf_8_is_read(tmp_path):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/run-\xff"))
    folder.mkdir()
    path = folder / "model.safetensors"
    model = networks.build("mlp", ())
    said = {METADATA: json.dumps({"dataset": "kmnist", "mean": 0.5, "std": 0.25})}
    path.write_bytes(save(model.state_dict(), said))
    trained = locate(path)
    assert (trained.dataset, trained.mean, trained.std) == ("kmnist", 0.5, 0.25)
    read = weights.load_weights(path)
    assert all(torch.equal(read[name], each) for name, each in model.state_dict().items())
    path.write_bytes(save(model.state_dict()))
    assert locate(path).dataset == "auto"
    for damaged in (b"", b"\xff" * 20, (5).to_bytes(8, "little") + b"[[[[["):
        path.write_bytes(damaged)
        locate(path)
        with pytest.raises(UserError, match="is damaged: it is not what"):
            weights.load_weights(path)
