"""A loaded pruned model is an ordinary one to the libraries that train, adapt and quantise models."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from sieve.calibration.collect import calibrate
from sieve.checkpoint.folder import load, save
from sieve.compression.low_rank.share_inputs import share_inputs_
from sieve.errors import InputError
from sieve.models.linears import prunable
from tests.tiny_models import tiny_model, tiny_tokenizer, tiny_tokens


@pytest.fixture
def model(folder):
    return AutoModelForCausalLM.from_pretrained(folder)


@pytest.fixture
def pivoted(pivoted_folder):
    return AutoModelForCausalLM.from_pretrained(pivoted_folder)


def logits(model):
    with torch.no_grad():
        return model(tiny_tokens()).logits


class TestLora:
    @pytest.fixture(autouse=True)
    def peft(self):
        self.peft = pytest.importorskip("peft")

    def adapt(self, model, targets):
        config = self.peft.LoraConfig(r=2, target_modules=targets, init_lora_weights=False, task_type="CAUSAL_LM")
        return self.peft.get_peft_model(model, config)

    @staticmethod
    def adapted(model):
        return {
            key.split(".lora_")[0].removeprefix("base_model.model.") for key in model.state_dict() if "lora_" in key
        }

    @pytest.mark.parametrize(
        ("targets", "expected"),
        [
            (["q_proj.A"], ["self_attn.q_proj.A"]),
            (
                ["q_proj.A", "q_proj.B", "layers.0.self_attn.k_proj"],  # the last one is dense
                ["self_attn.q_proj.A", "self_attn.q_proj.B", "self_attn.k_proj"],
            ),
        ],
    )
    def test_touches_what_was_asked_and_changes_the_output(self, model, targets, expected):
        before = logits(model)
        adapted = self.adapt(model, targets)
        in_first_block = {key for key in self.adapted(adapted) if ".layers.0." in key}
        assert in_first_block == {f"model.layers.0.{key}" for key in expected}
        assert not torch.allclose(logits(adapted), before, atol=1e-4)

    def test_unmerged_adapters_are_refused_before_work_and_merged_ones_are_pruned_with_the_rest(self, tmp_path):
        adapted = self.adapt(tiny_model("llama"), ["q_proj", "down_proj"])
        for model in (adapted, adapted.base_model.model):  # the wrapper, and the model that it has changed in place
            for ask in (prunable, share_inputs_, lambda model: calibrate(model, tiny_tokenizer(), "geography")):
                with pytest.raises(InputError, match=r"q_proj has an adapter .*merge_and_unload"):
                    ask(model)
        merged = adapted.merge_and_unload()
        assert list(prunable(merged)) == list(prunable(tiny_model("llama")))

    def test_all_linear_reaches_both_factors(self, model):
        adapted = self.adapted(self.adapt(model, "all-linear"))
        assert {"model.layers.0.self_attn.q_proj.A", "model.layers.0.self_attn.q_proj.B"} <= adapted
        assert "model.layers.0.self_attn.q_proj" not in adapted

    def test_gradients_reach_the_adapters_only(self, model):
        adapted = self.adapt(model, ["q_proj.A", "q_proj.B"])
        adapted(tiny_tokens(), labels=tiny_tokens()).loss.backward()
        with_gradient = [key for key, parameter in adapted.named_parameters() if parameter.grad is not None]
        assert len(with_gradient) == 4
        assert all("lora_" in key for key in with_gradient)

    def test_adapter_is_saved_and_loaded_on_top(self, model, folder, tmp_path):
        adapted = self.adapt(model, ["q_proj.A", "q_proj.B"])
        adapted.save_pretrained(tmp_path / "adapter")
        again = self.peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), tmp_path / "adapter")
        assert torch.equal(logits(again), logits(adapted))

    def test_merged_model_is_saved_adapted_one_is_not(self, model, tmp_path):
        adapted = self.adapt(model, ["q_proj.A", "q_proj.B"])
        with pytest.raises(InputError, match="merge"):
            save(adapted, tiny_tokenizer(), tmp_path / "merged")
        merged = adapted.merge_and_unload()
        save(merged, tiny_tokenizer(), tmp_path / "merged")
        assert torch.equal(logits(load(tmp_path / "merged")[0]), logits(merged))

    @pytest.mark.parametrize("child", ["A", "C"])
    def test_reaches_each_factor_of_a_pivoted_pair(self, pivoted, child):
        before = logits(pivoted)
        adapted = self.adapt(pivoted, [f"q_proj.{child}"])
        assert "model.layers.0.self_attn.q_proj." + child in self.adapted(adapted)
        assert not torch.allclose(logits(adapted), before, atol=1e-4)
        merged = adapted.merge_and_unload()
        assert not torch.allclose(logits(merged), before, atol=1e-4)


class TestTorchao:
    @pytest.fixture(autouse=True)
    def quantised(self, model):
        quantization = pytest.importorskip("torchao.quantization")
        self.before = logits(model)
        quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
        self.model = model

    def test_both_factors_are_quantised_and_used(self):
        pair = self.model.model.layers[0].self_attn.q_proj
        assert type(pair.A.weight.data) is not torch.Tensor
        assert type(pair.B.weight.data) is not torch.Tensor
        after = logits(self.model)
        assert not torch.equal(after, self.before)
        assert torch.allclose(after, self.before, atol=0.05)
        x = torch.randn(3, pair.in_features)
        with torch.no_grad():
            assert torch.equal(pair(x), pair.B(pair.A(x)))

    def test_both_factors_of_a_pivoted_pair_are_quantised_and_used(self, pivoted):
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        before = logits(pivoted)
        quantize_(pivoted, Int8WeightOnlyConfig())
        pair = pivoted.model.layers[0].self_attn.q_proj
        assert type(pair.A.weight.data) is not torch.Tensor
        assert type(pair.C.weight.data) is not torch.Tensor
        after = logits(pivoted)
        assert not torch.equal(after, before)
        assert torch.allclose(after, before, atol=0.05)
        x = torch.randn(3, pair.in_features)
        with torch.no_grad():
            z = pair.A(x)
            assert torch.equal(pair(x)[:, pair.permutation], torch.cat([z, pair.C(z)], -1))

    def test_saving_it_says_what_to_do(self, tmp_path):
        with pytest.raises(InputError, match="save first"):
            save(self.model, tiny_tokenizer(), tmp_path / "quantised")


def test_trainer_trains_all_weights(model, tmp_path):
    """Transformers refuses to train models that it takes for quantised."""
    from transformers import Trainer, TrainingArguments

    before = model.model.layers[0].self_attn.q_proj.A.weight.detach().clone()
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=1, use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True
    )
    rows = [{"input_ids": row, "labels": row} for row in tiny_tokens()]
    Trainer(model=model, args=arguments, train_dataset=rows).train()
    assert not torch.equal(model.model.layers[0].self_attn.q_proj.A.weight, before)
