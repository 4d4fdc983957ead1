"""vLLM's engine on a CPU, in a process of its own:

    python engine_of_folders.py JOBS OUT

JOBS: a JSON list of {"model", "prompts", "adapter", "new", "top", "options"}. For each job an engine loads the folder
`model`, with the keyword arguments `options`, and answers the prompts, which are lists of ids, with `new` tokens each;
requests name the folder `adapter` where there is one. OUT: for each job a list, for each prompt {"tokens": the prompt's
ids and the new ones, "logprobs": for each token but the first, or each new one where there is an adapter,
{id: log-probability} of the `top` likeliest}.

Everything runs in this process where the options do not ask for several ranks.
"""

import gc
import json
import os
import sys
from pathlib import Path

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")


def answers(job: dict) -> list[dict]:
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    # Positions of prompts are scored only where nothing of them is taken from the cache.
    options = {"dtype": "float32", "max_model_len": 128, "max_num_seqs": 4, "enable_prefix_caching": False}
    options |= {"max_logprobs": job["top"], **job.get("options", {})}
    adapter = job.get("adapter")
    if adapter:
        options |= {"enable_lora": True, "max_lora_rank": 16}
    engine = LLM(model=job["model"], **options)
    request = LoRARequest("adapter", 1, adapter) if adapter else None
    # vLLM 0.32 on a CPU cannot score prompts under an adapter: its product for the head takes one row a request.
    of_prompts = None if adapter else job["top"]
    wanted = SamplingParams(
        temperature=0, max_tokens=job["new"], logprobs=job["top"], prompt_logprobs=of_prompts, ignore_eos=True
    )
    prompts = [{"prompt_token_ids": ids} for ids in job["prompts"]]
    found = []
    for one in engine.generate(prompts, wanted, lora_request=request, use_tqdm=False):
        new = one.outputs[0]
        scored = [*(one.prompt_logprobs or [])[1:], *new.logprobs]
        found.append(
            {
                "tokens": [*one.prompt_token_ids, *new.token_ids],
                "logprobs": [{token: score.logprob for token, score in scores.items()} for scores in scored],
            }
        )
    return found


def main(jobs: str, out: str) -> None:
    todo = json.loads(Path(jobs).read_text())
    if all(job.get("options", {}).get("tensor_parallel_size", 1) == 1 for job in todo):
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    done = []
    for job in todo:
        done.append(answers(job))
        gc.collect()
    Path(out).write_text(json.dumps(done))


if __name__ == "__main__":
    main(*sys.argv[1:])
