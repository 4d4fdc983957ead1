"""The routes of `bench.routes`: what each does with the pruned model in `folder`/model, and what is expected of it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
UNPROVEN = {
    "vLLM: a GPU": "engines have been run on a CPU alone (`tests/sieve_vllm`)",
    "SGLang": "not supported",
    "bitsandbytes, in memory": "needs a GPU",
    "wheels for arm64": "built and run by emulation alone; the workflow that builds them has not been run",
    "wheels for macOS": "the workflow that builds them has not been run",
}


@dataclass(frozen=True)
class Route:
    """A way to use a pruned model.

    function: of the folder → {"scores", "wanted"}, each [questions, choices]; it raises OSError or ValueError, or
        returns {"refused"}, where the model is refused.
    needs: packages. sieve: whether Sieve is there. refuses: what the refusal must say, where one is right.
    tolerance: of a log-probability.
    """

    name: str
    function: Callable[[Path], dict[str, Any]]
    needs: tuple[str, ...] = ()
    sieve: bool = True
    refuses: str | None = None
    tolerance: float = 1e-3


def scored(ask: Callable[[list[int]], Any], folder: Path) -> list[list[float]]:
    """Log-probabilities of the choices after each prompt; ask: ids of a prompt → logits of its last position."""
    import torch

    questions = json.loads((folder / "questions.json").read_text())
    logits = torch.stack([torch.as_tensor(ask(ids)).float() for ids in questions["prompts"]])
    return logits.log_softmax(-1)[:, questions["choices"]].tolist()


def scores(model: Any, folder: Path) -> list[list[float]]:
    """Those of a transformers model."""
    import torch

    with torch.inference_mode():
        return scored(lambda ids: model(torch.tensor([ids])).logits[0, -1], folder)


def own(folder: Path) -> list[list[float]]:
    """Scores of the pruned model as Sieve loads it; found once."""
    known = folder / "scores.json"
    if not known.is_file():
        import sieve

        known.write_text(json.dumps(scores(sieve.load(folder / "model")[0], folder)))
    return json.loads(known.read_text())


def pretrained(folder: Path, **options: Any) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, **options)


def new(folder: Path, name: str) -> Path:
    shutil.rmtree(folder / name, ignore_errors=True)
    return folder / name


def sieve_load(folder: Path) -> dict[str, Any]:
    return {"scores": own(folder), "wanted": own(folder)}


def transformers(folder: Path) -> dict[str, Any]:
    assert "sieve" not in sys.modules
    return {"scores": scores(pretrained(folder / "model"), folder), "wanted": own(folder)}


def trusted(folder: Path) -> dict[str, Any]:
    model = pretrained(folder / "model", trust_remote_code=True)
    return {"scores": scores(model, folder), "wanted": own(folder)}


def resaved(folder: Path) -> dict[str, Any]:
    place = new(folder, "resaved")
    pretrained(folder / "model").save_pretrained(place, max_shard_size="100MB")
    return {"scores": scores(pretrained(place), folder), "wanted": own(folder)}


def peft_defaults(folder: Path) -> dict[str, Any]:
    import peft
    import torch

    place = new(folder, "adapter")
    model = peft.get_peft_model(pretrained(folder / "model"), peft.LoraConfig(task_type="CAUSAL_LM"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    model.save_pretrained(place)
    wanted = scores(model, folder)
    assert wanted != own(folder)
    again = peft.PeftModel.from_pretrained(pretrained(folder / "model"), place)
    return {"scores": scores(again.merge_and_unload(), folder), "wanted": wanted}


def peft_on_dense(folder: Path) -> dict[str, Any]:
    import peft

    import sieve

    if not (folder / "adapter").is_dir():
        peft_defaults(folder)
    peft.PeftModel.from_pretrained(sieve.load_model("smollm2", "float32")[0], folder / "adapter")
    return {"scores": [[0.0]], "wanted": [[0.0]]}


def torchao_saved(folder: Path) -> dict[str, Any]:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    import sieve

    model, tokenizer = sieve.load(folder / "model")
    quantize_(model, Int8WeightOnlyConfig())
    sieve.save(model, tokenizer, new(folder, "torchao"))
    return {"scores": scores(pretrained(folder / "torchao"), folder), "wanted": scores(model, folder)}


def torchao_config(folder: Path) -> dict[str, Any]:
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    model = pretrained(folder / "model", quantization_config=TorchAoConfig(Int8WeightOnlyConfig()))
    model.save_pretrained(new(folder, "torchao-config"))
    return {"scores": scores(pretrained(folder / "torchao-config"), folder), "wanted": scores(model, folder)}


def bitsandbytes(folder: Path) -> dict[str, Any]:
    from transformers import BitsAndBytesConfig

    model = pretrained(folder / "model", quantization_config=BitsAndBytesConfig(load_in_8bit=True))
    return {"scores": scores(model, folder), "wanted": own(folder)}


def own_int8(folder: Path) -> dict[str, Any]:
    import sieve

    model, tokenizer = sieve.load(folder / "model")
    sieve.save(sieve.quantize_(model, "int8"), tokenizer, new(folder, "int8"))
    return {"scores": scores(pretrained(folder / "int8"), folder), "wanted": scores(model, folder)}


LM_EVAL = """\
task: reviews
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "Review: {{{{text}}}}\\nSentiment:"
doc_to_choice: ["negative", "positive"]
doc_to_target: label
metric_list: [{{metric: acc}}]
"""


def lm_eval(folder: Path) -> dict[str, Any]:
    """Accuracy of all 40 reviews by lm-eval's command line, and by Sieve."""
    place = new(folder, "lm_eval")
    place.mkdir()
    rows = [json.loads(line) for line in (ROOT / "examples" / "reviews.jsonl").read_text().splitlines()]
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (place / "reviews.yaml").write_text(LM_EVAL.format(rows=json.dumps(str(place / "rows.jsonl"))))
    given = f"pretrained={folder / 'model'},tokenizer={folder / 'model'},dtype=float32"
    command = [sys.executable, "-m", "lm_eval", "--model", "hf", "--model_args", given, "--tasks", "reviews"]
    command += ["--include_path", str(place), "--device", "cpu", "--output_path", str(place / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return {"refused": done.stderr[-2000:]}
    (file,) = (place / "out").rglob("results_*.json")
    found = json.loads(file.read_text())["results"]["reviews"]["acc,none"]

    import sieve

    model, tokenizer = sieve.load(folder / "model")
    answers = sieve.predict(model, tokenizer, str(ROOT / "examples" / "reviews.yaml"), rows)
    right = [one.index == one.row["label"] for one in answers]
    return {"scores": [[found]], "wanted": [[sum(right) / len(right)]]}


def lm_eval_alone(folder: Path) -> dict[str, Any]:
    return lm_eval(folder)


def exported(folder: Path, to: str) -> Path:
    import sieve

    place = new(folder, to)
    sieve.export(folder / "model", place, to=to)
    return place


def dense(folder: Path) -> dict[str, Any]:
    """Exported with Sieve, loaded without."""
    code = "import sys, sieve; sieve.export(sys.argv[1], sys.argv[2], to='dense')"
    place = new(folder, "dense")
    subprocess.run([sys.executable, "-c", code, str(folder / "model"), str(place)], check=True, capture_output=True)
    return {"scores": scores(pretrained(place), folder), "wanted": own(folder)}


def onnx(folder: Path) -> dict[str, Any]:
    import numpy
    import onnxruntime

    session = onnxruntime.InferenceSession(exported(folder, "onnx") / "model.onnx")

    def ask(ids: list[int]) -> Any:
        feed = {"input_ids": numpy.array([ids]), "attention_mask": numpy.ones((1, len(ids)), dtype=numpy.int64)}
        for one in session.get_inputs()[2:]:
            feed[one.name] = numpy.zeros((1, one.shape[1], 0, one.shape[3]), dtype=numpy.float32)
        return session.run(["logits"], feed)[0][0, -1]

    return {"scores": scored(ask, folder), "wanted": own(folder)}


def gguf(folder: Path) -> dict[str, Any]:
    import sieve

    place = new(folder, "gguf")
    place.mkdir()
    sieve.export(folder / "model", place / "model.gguf", to="gguf")
    model = sieve.load_model(str(place / "model.gguf"), "float32")[0]
    return {"scores": scores(model, folder), "wanted": own(folder)}


def tests(*arguments: str) -> dict[str, Any]:
    """The repository's own tests of a route."""
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments], cwd=ROOT)
    assert done.returncode == 0
    return {"scores": [[0.0]], "wanted": [[0.0]]}


def vllm_models(folder: Path) -> dict[str, Any]:
    return tests("tests/sieve_vllm", "-m", "slow or not slow")


def wheel(folder: Path) -> dict[str, Any]:
    return tests("tests/packaging", "-m", "slow", "-k", "sieve-pruning")


ROUTES = (
    Route("`sieve.load`", sieve_load),
    Route("transformers, Sieve installed, not imported", transformers),
    Route("transformers without Sieve", transformers, sieve=False, refuses="no file named model.safetensors"),
    Route("transformers without Sieve, `trust_remote_code=True`", trusted, sieve=False),
    Route("`save_pretrained` in shards, loaded again", resaved),
    Route("peft's defaults: adapter trained, saved, loaded, merged", peft_defaults, needs=("peft",)),
    Route("that adapter on the dense model", peft_on_dense, needs=("peft",), refuses="trained on another model"),
    Route("`sieve.quantize_` int8, saved", own_int8),
    Route("torchao int8, saved", torchao_saved, needs=("torchao",)),
    Route("`TorchAoConfig` at loading, saved", torchao_config, needs=("torchao",)),
    Route("`BitsAndBytesConfig` at loading", bitsandbytes, refuses=r"cannot be quantised by BitsAndBytesConfig"),
    Route("lm-eval's command line (accuracy)", lm_eval, needs=("lm_eval",), tolerance=1e-9),
    Route(
        "lm-eval's command line without Sieve",
        lm_eval_alone,
        needs=("lm_eval",),
        sieve=False,
        refuses="Unknown quantization type, got sieve",
    ),
    Route("exported dense, transformers without Sieve", dense, sieve=False),
    Route("ONNX, onnxruntime", onnx, needs=("onnx", "onnxscript", "onnxruntime")),
    Route("GGUF, read back", gguf),
    Route("vLLM's model classes on a CPU (tests)", vllm_models, needs=("vllm",)),
    Route("a wheel in an environment of its own (tests)", wheel),
)
