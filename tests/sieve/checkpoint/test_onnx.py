"""The ONNX graph in onnxruntime: the model's own logits at any size, with a cache, with padding on the left."""

import json

import pytest
import torch

import sieve
from sieve.checkpoint.exporters.onnx import lacks
from sieve.checkpoint.folder import save
from sieve.nn.stacked import stacks
from tests.tiny_models import tiny_model, tiny_pruned, tiny_tokenizer, tiny_tokens


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3", "stacked"])
def test_logits_are_equal(family, tmp_path):
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = sieve.share_inputs_(tiny_model("llama")) if family == "stacked" else tiny_pruned(family, pivoted=True)
    save(model, tiny_tokenizer(), tmp_path / "model")
    sieve.export(tmp_path / "model", tmp_path / "onnx", to="onnx")
    assert bool(stacks(model)) == (family == "stacked")
    graph = onnx.load(tmp_path / "onnx" / "model.onnx", load_external_data=False).graph
    assert "TopK" not in {node.op_type for node in graph.node}
    assert "quantization_config" not in json.loads((tmp_path / "onnx" / "config.json").read_text())
    session = onnxruntime.InferenceSession(tmp_path / "onnx" / "model.onnx")

    def run(ids, mask, past=None):
        feed = {"input_ids": ids.numpy(), "attention_mask": mask.numpy()}
        for index, one in enumerate(session.get_inputs()[2:]):
            feed[one.name] = (
                torch.zeros(len(ids), one.shape[1], 0, one.shape[3]).numpy() if past is None else past[index]
            )
        logits, *present = session.run(None, feed)
        return torch.from_numpy(logits), present

    def close(found, wanted):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)

    model.eval()
    for rows, length in ((1, 1), (2, 12), (3, 7)):
        ids = tiny_tokens(rows, length)
        close(run(ids, torch.ones_like(ids))[0], model(ids).logits)
    # Four cells of padding on the left, then five tokens, one, and the rest over the cache.
    ids = tiny_tokens(2, 12)
    padding = torch.zeros(2, 4, dtype=torch.int64)
    padded, mask = torch.cat([padding, ids], 1), torch.cat([padding, torch.ones_like(ids)], 1)
    wanted, past = model(ids).logits, None
    for begin, end in ((0, 9), (9, 10), (10, 16)):
        logits, past = run(padded[:, begin:end], mask[:, :end], past)
        first = max(begin, 4)
        close(logits[:, first - begin :], wanted[:, first - 4 : end - 4])


def test_what_it_cannot_hold_is_said_in_one_line(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert lacks(tiny_pruned("llama"), None) is None
    windowed = tiny_pruned("mistral")
    windowed.config.sliding_window = 16
    assert "a window of 16 tokens" in lacks(windowed, None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install onnx onnxscript" in lacks(tiny_pruned("llama"), None)
