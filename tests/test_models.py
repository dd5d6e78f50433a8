"""The embedded model, folders, tiny decoders and adapters: right, quick, and clear when something is missing."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from alignbook import models
from alignbook.runtime import AlignbookError, digest


@pytest.fixture()
def toy():
    return models.tiny("a cat sat on the mat".split(), seed=1)


def test_embedded_model_is_the_quantised_one():
    lm = models.load()
    assert lm.size == 134_515_008 and lm.max_len == 8192 and lm.tok.chat_template
    manifest = json.loads((models.embedded_path("smollm2-135m") / "manifest.json").read_text())
    assert manifest["digest"][:16] == lm.digest
    w = lm.model.model.layers[3].mlp.up_proj.weight[0, :32]  # one Q4_1 block: at most 16 levels
    assert len(w.unique()) <= 16


def test_second_load_is_quick():
    models.load()
    models._load.cache_clear()
    start = time.time()
    models.load()
    assert (
        time.time() - start < 20
    )  # measured about 1 s on an idle machine; the bound only catches a re-conversion


def test_damaged_copy_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("ALIGNBOOK_CACHE", str(tmp_path))
    folder = tmp_path / "models" / "smollm2-135m"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"broken")
    (folder / "manifest.json").write_text(json.dumps({"digest": "0" * 64}))
    models._load.cache_clear()
    with pytest.raises(AlignbookError, match="model.safetensors.*delete"):
        models.load()


def test_missing_model_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # no network, at once
    with pytest.raises(AlignbookError, match="cannot load model 'no-such/model'"):
        models.load("no-such/model")
    with pytest.raises(AlignbookError, match="cannot load model"):
        models.load(str(tmp_path))


def test_local_folder_round_trip(toy, tmp_path):
    toy.model.save_pretrained(tmp_path)
    toy.tok.save_pretrained(tmp_path)
    again = models.load(str(tmp_path))
    x = torch.tensor([[3, 4, 5, 6]])
    assert torch.allclose(again.model(x).logits, toy.model(x).logits, atol=1e-6)
    assert again.digest == models.weight_digest(again.model)
    assert again.tok("cat sat").input_ids == toy.tok("cat sat").input_ids


def test_digest_sees_one_changed_weight(toy):
    before = models.weight_digest(toy.model)
    with torch.no_grad():
        toy.model.model.norm.weight[0] += 1e-6
    assert models.weight_digest(toy.model) != before


def test_tiny_is_seeded_and_checked(toy):
    other = models.tiny("a cat sat on the mat".split(), seed=1)
    assert digest(models.weight_digest(other.model)) == digest(models.weight_digest(toy.model))
    assert models.weight_digest(models.tiny(["a"], seed=2).model) != models.weight_digest(
        models.tiny(["a"]).model
    )
    assert toy.tok.decode(toy.tok("the cat sat").input_ids) == "the cat sat"
    with pytest.raises(AlignbookError, match="width 6"):
        models.tiny(["a"], width=6, heads=4)


def test_lora_attach_train_save_load_detach(toy, tmp_path):
    x = torch.tensor([[3, 4, 5, 6]])
    before = toy.model(x).logits.detach().clone()
    lora = models.attach_lora(toy, rank=2, seed=0)
    assert torch.equal(lora.model(x).logits, before)
    trainable = [p for p in lora.model.parameters() if p.requires_grad]
    assert 0 < sum(p.numel() for p in trainable) < toy.size / 4
    with torch.no_grad():
        for p in trainable:
            p.add_(0.05)
    after = lora.model(x).logits.detach().clone()
    assert not torch.allclose(after, before)
    models.save_lora(lora, tmp_path)
    bare = models.detach_lora(lora)
    assert torch.equal(bare.model(x).logits, before)
    assert torch.allclose(models.load_lora(bare, tmp_path).model(x).logits, after, atol=1e-6)
    with pytest.raises(AlignbookError, match="no LoRA adapter in"):
        models.load_lora(toy, tmp_path / "none")
    with pytest.raises(AlignbookError, match="no LoRA adapter to detach"):
        models.detach_lora(models.tiny(["a"]))


def test_unknown_dtype_and_truncated_weights_are_named(toy, tmp_path):
    with pytest.raises(AlignbookError, match="unknown dtype 'float33'"):
        models.load(dtype="float33")
    toy.model.save_pretrained(tmp_path)
    toy.tok.save_pretrained(tmp_path)
    assert models.load(tmp_path).size == toy.size
    models._load.cache_clear()
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(AlignbookError, match=f"{tmp_path.name}' are truncated"):
        models.load(tmp_path)


def test_two_first_loads_do_not_meet(tmp_path, monkeypatch):
    "Both unpack at the same time, over what a killed load left; one folder stays, and it is whole."
    monkeypatch.setenv("ALIGNBOOK_CACHE", str(tmp_path))
    folder, both = tmp_path / "models" / "smollm2-135m", threading.Barrier(2)
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_text("half")

    def unpack(name, where):
        where.mkdir()
        (where / "model.safetensors").write_text("whole")
        both.wait(10)
        (where / "manifest.json").write_text(json.dumps({"digest": digest(where / "model.safetensors", 64)}))

    monkeypatch.setattr(models, "_unpack", unpack)
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda _: models._dequantise("smollm2-135m", folder), range(2)))
    assert models._embedded("smollm2-135m")[0] == folder
    assert [p.name for p in folder.parent.iterdir()] == ["smollm2-135m"] and len(list(folder.iterdir())) == 2


def test_copy_is_independent(toy):
    copied = models.copy_lm(toy)
    with torch.no_grad():
        copied.model.model.norm.weight.zero_()
    assert toy.model.model.norm.weight.abs().sum() > 0
