"""peft's ordinary configurations on pruned models: adapters on whole matrices act, save, load, merge and unmerge."""

import copy
import json
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

import sieve
from sieve.checkpoint.adapters import BASE_FILE
from sieve.checkpoint.folder import load, save
from sieve.compression.low_rank.share_inputs import share_inputs_
from sieve.errors import InputError, NumericsError
from sieve.models.linears import layer_in, replace
from sieve.models.loading import load_model
from sieve.nn.formats.pivoted_pair import PivotedPair
from sieve.nn.low_rank import LowRankLinear, PivotedLinear
from tests.tiny_models import TINY, tiny_model, tiny_pruned, tiny_tokenizer, tiny_tokens

peft = pytest.importorskip("peft")

WHOLE = ["q_proj", "v_proj", "down_proj"]


def logits(model):
    with torch.no_grad():
        return model(tiny_tokens()).logits


def adapt(model, targets=WHOLE, **options):
    """An adapter that changes the output, as after training."""
    options = {"r": 3, "lora_alpha": 6, "task_type": "CAUSAL_LM", **options}
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=targets, **options)).eval()
    return stir_(adapted)


def stir_(adapted, seed=0):
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name or "lora_A" in name:
                parameter.normal_(std=0.3)
            elif "magnitude" in name:
                parameter.mul_(1 + 0.3 * torch.rand_like(parameter))
    return adapted


def pruned(pivoted=True, family="llama"):
    return tiny_pruned(family, pivoted=pivoted)


@pytest.fixture
def stacked():
    """Pairs of q, k and v together; gate and up are a stack that stayed dense."""
    model = share_inputs_(tiny_model("llama"))
    for block in range(2):
        name = f"model.layers.{block}.self_attn.qkv_proj"
        pair = layer_in(PivotedPair(9), model.get_submodule(name))
        with torch.no_grad():
            for parameter in pair.parameters():
                parameter.normal_(std=0.3)
            pair.permutation.copy_(torch.randperm(pair.out_features))
        replace(model, name, pair)
    return model.eval()


class TestOrdinaryConfigurations:
    @pytest.mark.parametrize("pivoted", [True, False])
    def test_an_adapter_adds_to_the_whole_matrix(self, pivoted):
        model = pruned(pivoted)
        q = model.model.layers[0].self_attn.q_proj
        adapted = adapt(model)
        layer = model.model.layers[0].self_attn.q_proj
        assert layer.base_layer is q
        x = torch.randn(4, q.in_features)
        with torch.no_grad():
            W = q.weight + 2 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
            torch.testing.assert_close(layer(x), x @ W.T)
        with adapted.disable_adapter():
            torch.testing.assert_close(logits(adapted), logits(pruned(pivoted)))

    @pytest.mark.parametrize("family", sorted(TINY))
    def test_defaults_per_model_type(self, family):
        model = pruned(family=family)
        before = logits(model)
        adapted = adapt(model, ["qkv_proj"] if family == "phi3" else None)  # peft has no default for Phi-3
        assert not torch.allclose(logits(adapted), before, atol=1e-4)
        after = logits(adapted)
        torch.testing.assert_close(logits(adapted.merge_and_unload()), after, atol=2e-4, rtol=1e-4)

    @pytest.mark.parametrize("family", sorted(TINY))
    def test_targets_name_every_matrix_as_a_whole(self, family):
        model = pruned(family=family)
        names = sieve.lora_targets(model)
        assert names == sieve.lora_targets(tiny_model(family))
        assert not {"A", "B", "C"} & set(names)
        count = sum(name.endswith(".base_layer") for name, _ in adapt(model, names).named_modules())
        assert count == len(sieve.models.linears.prunable(tiny_model(family)))

    def test_only_adapters_train(self):
        adapted = adapt(pruned())
        adapted(tiny_tokens(), labels=tiny_tokens()).loss.backward()
        trained = [name for name, parameter in adapted.named_parameters() if parameter.grad is not None]
        assert len(trained) == 2 * 2 * len(WHOLE)
        assert all(".lora_" in name for name in trained)

    def test_members_of_a_stack_take_adapters(self, stacked):
        before = logits(stacked)
        adapted = adapt(copy.deepcopy(stacked), ["q_proj", "v_proj", "up_proj"])
        assert not torch.allclose(logits(adapted), before, atol=1e-4)
        with adapted.disable_adapter():
            assert torch.equal(logits(adapted), before)
        layer = adapted.base_model.model.model.layers[0].self_attn.v_proj
        x = torch.randn(3, 32)
        with torch.no_grad():
            W = layer.base_layer.weight + layer.get_delta_weight("default")
            torch.testing.assert_close(layer(x), x @ W.T, atol=1e-4, rtol=1e-4)

    def test_nothing_warns_and_importing_sieve_does_not_import_peft(self):
        code = (
            "import warnings, sys; warnings.simplefilter('error', UserWarning); import sieve; "
            "assert 'peft' not in sys.modules; import transformers; assert 'peft' not in sys.modules\n"
            "import peft; from tests.tiny_models import tiny_pruned\n"
            "peft.get_peft_model(tiny_pruned('llama', pivoted=True), peft.LoraConfig(target_modules=['q_proj']))"
        )
        subprocess.run([sys.executable, "-c", code], check=True)


class TestMerging:
    @pytest.mark.parametrize("dora", [False, True])
    @pytest.mark.parametrize("pivoted", [True, False])
    def test_merged_is_adapted_and_unmerged_is_before(self, pivoted, dora):
        adapted = adapt(pruned(pivoted), use_dora=dora)
        before, weights = logits(adapted), copy.deepcopy(adapted.state_dict())
        adapted.merge_adapter()
        torch.testing.assert_close(logits(adapted), before, atol=1e-4, rtol=1e-4)
        adapted.unmerge_adapter()
        torch.testing.assert_close(logits(adapted), before, atol=1e-4, rtol=1e-4)
        after = adapted.state_dict()
        assert weights.keys() == after.keys()
        # Of dense layers peft takes the difference away again, which rounds; pairs get their own tensors back.
        rounded = {name for name, tensor in weights.items() if not torch.equal(after[name], tensor)}
        assert all(name.endswith("base_layer.weight") for name in rounded)

    @pytest.mark.parametrize("dora", [False, True])
    def test_members_of_a_stack(self, stacked, dora):
        adapted = adapt(stacked, ["q_proj", "v_proj", "up_proj"], use_dora=dora)
        before = logits(adapted)
        adapted.merge_adapter()
        torch.testing.assert_close(logits(adapted), before, atol=3e-4, rtol=1e-4)
        q = stacked.model.layers[0].self_attn.q_proj
        q.unmerge()  # of two that are merged into one layer, the one that was first
        torch.testing.assert_close(logits(adapted), before, atol=3e-4, rtol=1e-4)
        adapted.unmerge_adapter()
        torch.testing.assert_close(logits(adapted), before, atol=3e-4, rtol=1e-4)
        torch.testing.assert_close(logits(adapted.merge_and_unload()), before, atol=3e-4, rtol=1e-4)
        assert stacked.model.layers[0].self_attn.qkv_proj.rank == 9 + 2 * 3

    def test_two_adapters(self):
        model = pruned()
        adapted = adapt(model)
        adapted.add_adapter("other", peft.LoraConfig(r=2, target_modules=["q_proj", "up_proj"]))
        stir_(adapted, seed=1)
        adapted.base_model.set_adapter(["default", "other"])
        both = logits(adapted)
        adapted.merge_adapter()
        torch.testing.assert_close(logits(adapted), both, atol=1e-4, rtol=1e-4)
        assert model.model.layers[0].self_attn.q_proj.base_layer.rank == 4 + 3 + 2
        torch.testing.assert_close(logits(adapted.merge_and_unload()), both, atol=1e-4, rtol=1e-4)

    @pytest.mark.parametrize("pivoted", [True, False])
    def test_a_merged_model_is_a_pruned_model_that_saves_and_loads(self, tmp_path, pivoted):
        adapted = adapt(pruned(pivoted))
        before = logits(adapted)
        merged = adapted.merge_and_unload()
        pair = merged.model.layers[0].self_attn.q_proj
        assert type(pair) is (PivotedLinear if pivoted else LowRankLinear)
        assert pair.rank == 4 + 3
        save(merged, tiny_tokenizer(), tmp_path / "ours")
        merged.save_pretrained(tmp_path / "theirs")
        for folder in ("ours", "theirs"):
            again = AutoModelForCausalLM.from_pretrained(tmp_path / folder)
            torch.testing.assert_close(logits(again), before, atol=1e-4, rtol=1e-4)

    def test_rank_ends_at_that_of_a_whole_matrix(self):
        adapted = adapt(pruned(), r=40)
        before = logits(adapted)
        merged = adapted.merge_and_unload()
        assert merged.model.layers[0].self_attn.q_proj.rank == 32
        torch.testing.assert_close(logits(merged), before, atol=2e-3, rtol=1e-3)

    def test_bfloat16_under_float32_adapters(self):
        model = tiny_pruned("llama", dtype=torch.bfloat16, pivoted=True)
        adapted = adapt(model)
        assert model.model.layers[0].self_attn.q_proj.lora_A["default"].weight.dtype is torch.float32
        adapted.merge_adapter()
        assert model.model.layers[0].self_attn.q_proj.base_layer.A.weight.dtype is torch.bfloat16
        adapted.unmerge_adapter()
        assert {parameter.dtype for parameter in adapted.merge_and_unload().parameters()} == {torch.bfloat16}

    def test_a_bias_of_the_adapter(self):
        adapted = adapt(pruned(family="qwen2"), lora_bias=True)
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if name.endswith("lora_B.default.bias"):
                    parameter.normal_()
        before = logits(adapted)
        with pytest.raises(InputError, match="its matrix has none"):  # down_proj
            adapted.merge_adapter()
        adapted.unmerge_adapter()
        torch.testing.assert_close(logits(adapted), before)
        attention = adapt(pruned(family="qwen2"), ["q_proj", "v_proj"], lora_bias=True)
        before = logits(attention)
        torch.testing.assert_close(logits(attention.merge_and_unload()), before, atol=1e-4, rtol=1e-4)

    def test_safe_merge_finds_nan(self):
        adapted = adapt(pruned())
        with torch.no_grad():
            adapted.base_model.model.model.layers[0].self_attn.q_proj.lora_A["default"].weight.fill_(torch.nan)
        with pytest.raises(NumericsError, match="NaN"):
            adapted.merge_adapter(safe_merge=True)

    def test_unloading_leaves_the_model_as_it_was(self):
        before = logits(pruned())
        model = adapt(pruned()).unload()
        assert torch.equal(logits(model), before)
        assert sieve.lora_targets(model)


class TestRefusals:
    @pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora", "corda", "mica"])
    def test_an_initialisation_that_takes_the_base_apart_is_named(self, init):
        with pytest.raises(InputError, match=f"init_lora_weights='{init}'"):
            adapt(pruned(), ["q_proj"], init_lora_weights=init)

    def test_a_variant_that_is_not_known_here_is_named(self):
        with pytest.raises(InputError, match="alora"):
            adapt(pruned(), ["q_proj"], alora_invocation_tokens=[5])

    def test_whole_matrix_and_factor_at_once(self):
        adapted = adapt(pruned(), "all-linear")
        with pytest.raises(InputError, match="factor"):
            adapted.add_adapter("other", peft.LoraConfig(target_modules=["q_proj"]))

    def test_quantised_factors_are_not_merged_into(self):
        quantization = pytest.importorskip("torchao.quantization")
        model = pruned(pivoted=False)
        adapted = adapt(model, ["q_proj"])
        quantization.quantize_(model.model.layers[0].self_attn.q_proj.base_layer, quantization.Int8WeightOnlyConfig())
        logits(adapted)
        with pytest.raises(InputError, match="quantised"):
            adapted.merge_adapter()


class TestFolders:
    @pytest.fixture
    def folder(self, tmp_path):
        save(pruned(), tiny_tokenizer(), tmp_path / "model")
        return tmp_path / "model"

    @pytest.fixture
    def adapter(self, folder, tmp_path):
        adapted = adapt(AutoModelForCausalLM.from_pretrained(folder))
        adapted.save_pretrained(tmp_path / "adapter")
        self.logits = logits(adapted)
        return tmp_path / "adapter"

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_saved_and_loaded_on_its_base(self, folder, adapter, dtype):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        again = peft.PeftModel.from_pretrained(model, adapter)
        if dtype is torch.float32:
            assert torch.equal(logits(again), self.logits)

    def test_load_model_takes_the_adapter_for_the_model(self, folder, adapter):
        model, tokenizer = load_model(str(adapter))
        assert torch.equal(logits(model), self.logits)
        assert tokenizer("abc").input_ids

    def test_a_base_that_moved_with_its_adapter_is_found(self, folder, adapter, tmp_path):
        (tmp_path / "moved").mkdir()
        folder.rename(tmp_path / "moved" / "model")
        adapter.rename(tmp_path / "moved" / "adapter")
        model, _ = load_model(str(tmp_path / "moved" / "adapter"))
        assert torch.equal(logits(model), self.logits)

    def test_a_base_that_is_gone_or_an_adapter_is_named(self, folder, adapter, tmp_path):
        folder.rename(tmp_path / "elsewhere")
        with pytest.raises(InputError, match="model"):
            load_model(str(adapter))
        config = json.loads((adapter / "adapter_config.json").read_text())
        (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(adapter)}))
        with pytest.raises(InputError, match="an adapter itself"):
            load_model(str(adapter))

    def test_another_base_is_refused_before_it_is_changed(self, adapter, tmp_path):
        for model in (tiny_pruned("llama", seed=1, pivoted=True), tiny_model("llama"), pruned(pivoted=False)):
            before = logits(model)
            with pytest.raises(InputError, match="trained on another model"):
                peft.PeftModel.from_pretrained(model, adapter)
            assert torch.equal(logits(model), before)

    def test_an_adapter_of_the_dense_model_is_refused(self, folder, tmp_path):
        tiny_model("llama").save_pretrained(tmp_path / "dense")
        adapt(AutoModelForCausalLM.from_pretrained(tmp_path / "dense")).save_pretrained(tmp_path / "adapter")
        assert not (tmp_path / "adapter" / BASE_FILE).exists()
        with pytest.raises(InputError, match="this is the pruned model"):
            peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), tmp_path / "adapter")

    def test_an_adapter_of_which_no_name_matches_is_refused(self, folder, adapter):
        from safetensors.torch import load_file, save_file

        weights = adapter / "adapter_model.safetensors"
        save_file({name.replace("self_attn", "attention"): one for name, one in load_file(weights).items()}, weights)
        with pytest.raises(InputError, match="have no place here"):
            peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), adapter)

    def test_report_and_recipe_go_with_a_merged_model(self, folder, adapter, tmp_path):
        save(
            pruned(), tiny_tokenizer(), tmp_path / "reported", report={"notes": []}, recipe={"model": "m", "task": "t"}
        )
        merged = adapt(load(tmp_path / "reported")[0]).merge_and_unload()
        save(merged, tiny_tokenizer(), tmp_path / "merged")
        assert (
            "loaded, changed and saved again" in json.loads((tmp_path / "merged/report.json").read_text())["notes"][0]
        )
        assert (tmp_path / "merged/recipe.yaml").read_text() == (tmp_path / "reported/recipe.yaml").read_text()


def test_a_missing_pad_token_stays_missing(tmp_path):
    """Stored as the end of the text it would be masked in training: a model then never learns to end."""
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    tiny_model("llama").save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    model, tokenizer = load_model(str(tmp_path / "model"))
    save(model, tokenizer, tmp_path / "again")
    assert load_model(str(tmp_path / "again"))[1].pad_token is None
