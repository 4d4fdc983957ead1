"""A loaded pruned model is an ordinary one to the libraries that train, adapt and quantise models."""

import copy
import json
import pickle

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TorchAoConfig

from sieve.calibration.collect import calibrate
from sieve.checkpoint.export import export
from sieve.checkpoint.folder import load, save, write_mask_config
from sieve.compression.low_rank.share_inputs import share_inputs_
from sieve.errors import InputError, NumericsError, StorageError
from sieve.models.linears import check_finite, prunable
from sieve.run.heal import _require_pruned
from tests.tiny_models import narrow_, tiny_model, tiny_tokenizer, tiny_tokens


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

    @pytest.mark.parametrize("way", ["sieve.save", "save_pretrained"])
    def test_it_is_saved_and_loaded_with_equal_outputs(self, way, tmp_path):
        place = tmp_path / "quantised"
        after = logits(self.model)
        save(self.model, tiny_tokenizer(), place) if way == "sieve.save" else self.model.save_pretrained(place)
        again = AutoModelForCausalLM.from_pretrained(place)
        assert type(again.model.layers[0].self_attn.q_proj.A.weight.data).__module__.startswith("torchao.")
        assert torch.equal(logits(again), after)
        # The head was quantised and the embedding was not, so they are one table no more.
        assert again.config.tie_word_embeddings is False
        # Readers without torchao can tell.
        assert json.loads((place / "config.json").read_text())["quantization_config"]["tensors"] == "torchao"
        # A loaded one can do what any can: copies, and being saved again.
        assert torch.equal(logits(pickle.loads(pickle.dumps(copy.deepcopy(again)))), after)
        again.save_pretrained(tmp_path / "again")
        assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "again")), after)

    def test_a_saved_one_is_checked_and_no_other_format(self, tmp_path):
        save(self.model, tiny_tokenizer(), tmp_path / "quantised")
        assert torch.equal(logits(load(tmp_path / "quantised")[0]), logits(self.model))
        with pytest.raises(InputError, match="keep their format"):
            save(self.model, tiny_tokenizer(), tmp_path / "plain", format="plain")
        with pytest.raises(InputError, match="quantised by torchao; export the folder that it was made from"):
            export(tmp_path / "quantised", tmp_path / "dense", to="dense")
        with pytest.raises(InputError, match="quantised already"):
            self.load(tmp_path / "quantised")
        # A flipped bit of a scale is found, however long torchao's metadata are.
        (file,) = (tmp_path / "quantised").glob("*.safetensors")
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
        with pytest.raises(StorageError, match="damaged"):
            AutoModelForCausalLM.from_pretrained(tmp_path / "quantised")

    def test_healing_is_refused_and_a_damaged_scale_is_named(self):
        with pytest.raises(InputError, match="is quantised: heal the model that it was made from"):
            _require_pruned(self.model, "runs/mine")
        check_finite(self.model)
        self.model.model.layers[0].self_attn.q_proj.B.weight.scale[0] = torch.nan
        with pytest.raises(NumericsError, match=r"q_proj\.B\.weight holds NaN"):
            check_finite(self.model)

    @staticmethod
    def load(folder, **options):
        from torchao.quantization import Int8WeightOnlyConfig

        config = TorchAoConfig(Int8WeightOnlyConfig(), **options)
        return AutoModelForCausalLM.from_pretrained(folder, quantization_config=config)

    def test_a_folder_is_quantised_as_it_loads(self, pivoted_folder, tmp_path):
        model = self.load(pivoted_folder, modules_to_not_convert=["lm_head", "k_proj"])
        kinds = {name: type(one.data) is torch.Tensor for name, one in model.named_parameters()}
        layer = "model.layers.0.self_attn"
        assert not kinds[f"{layer}.q_proj.A.weight"]
        assert not kinds[f"{layer}.q_proj.C.weight"]
        assert kinds[f"{layer}.k_proj.weight"]
        assert model.lm_head.weight is model.model.embed_tokens.weight
        model.save_pretrained(tmp_path / "quantised")
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "quantised")
        assert torch.equal(logits(again), logits(model))
        assert again.lm_head.weight is again.model.embed_tokens.weight

    def test_layers_that_lost_channels_are_quantised_as_they_load(self, tmp_path):
        model = tiny_model("llama")
        narrow_(model.model.layers[0].mlp, 32)
        save(model, tiny_tokenizer(), tmp_path / "narrow")
        loaded = self.load(tmp_path / "narrow")
        for name in ("gate_proj", "up_proj", "down_proj"):
            assert type(getattr(loaded.model.layers[0].mlp, name).weight.data).__module__.startswith("torchao."), name
        save(loaded, tiny_tokenizer(), tmp_path / "quantised")
        again = load(tmp_path / "quantised")[0]
        assert torch.equal(logits(again), logits(loaded))
        assert again.model.layers[0].mlp.up_proj.weight.shape == (32, model.config.hidden_size)

    def test_zeros_of_masks_are_no_less_safe_without_sieve(self, tmp_path):
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        model = tiny_model("llama")
        weight = model.model.layers[0].mlp.up_proj.weight.data
        weight[weight < 0] = 0
        write_mask_config(model, {"model.layers.0.mlp.up_proj": 0.9}, "unstructured")
        quantize_(model, Int8WeightOnlyConfig())
        save(model, tiny_tokenizer(), tmp_path / "masked")
        # Transformers alone would not find torchao's tensors and make random ones: it must find no file.
        assert not list((tmp_path / "masked").glob("model*.safetensors"))
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "masked")
        assert torch.allclose(logits(again), logits(model), atol=1e-5)

    def test_what_cannot_be_saved_says_what_to_do(self, folder, tmp_path):
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        dense = tiny_model("llama")
        quantize_(dense, Int8WeightOnlyConfig())
        with pytest.raises(InputError, match="save first"):
            save(dense, tiny_tokenizer(), tmp_path / "dense")
        with pytest.raises(InputError, match=r"BitsAndBytesConfig while it loads.*--quantize int8"):
            AutoModelForCausalLM.from_pretrained(folder, quantization_config=BitsAndBytesConfig(load_in_8bit=True))
        self.model.lm_head.weight = torch.nn.Parameter(Strange(torch.zeros(128, 32)), requires_grad=False)
        with pytest.raises(InputError, match=r"cannot be saved.*--quantize int8"):
            save(self.model, tiny_tokenizer(), tmp_path / "strange")


class Strange(torch.Tensor):
    """A tensor that no library has a file format for."""


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
