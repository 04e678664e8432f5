import torch

from gptj_batch import Request
from gptj_batch.engine.config import Bounds
from gptj_batch.engine.kv_cache import KVCache
from gptj_batch.engine.runner import Runner
from gptj_batch.engine.scheduler import Scheduler
from gptj_batch.engine.sequence import Sequence
from gptj_batch.model import GPTJForCausalLM


def make(model: GPTJForCausalLM, max_step_tokens: int) -> tuple[Runner, Scheduler]:
    cache = KVCache(
        num_layers=model.config.n_layer,
        num_blocks=8,
        num_heads=model.config.n_head,
        block_size_tokens=4,
        head_dim=model.config.head_dim,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    bounds = Bounds(max_step_tokens=max_step_tokens, max_running=4, block_size_tokens=4, num_blocks=8)
    return Runner(model, cache, (1,)), Scheduler(bounds)


@torch.no_grad()
def test_the_next_token_is_that_of_the_dense_model(model: GPTJForCausalLM) -> None:
    runner, scheduler = make(model, max_step_tokens=32)
    prompts = [[5, 6, 7, 8, 9], [3]]
    for uid, prompt in enumerate(prompts):
        scheduler.add(Sequence(uid, Request(key="a", prompt_token_ids=prompt)))
    chosen = {sequence.uid: choice.token_id for sequence, choice in runner.run(scheduler.schedule())}
    assert chosen == {
        uid: int(model(torch.tensor([prompt])).logits[0, -1].argmax()) for uid, prompt in enumerate(prompts)
    }


def test_nothing_is_chosen_before_a_prompt_has_been_fed_whole(model: GPTJForCausalLM) -> None:
    runner, scheduler = make(model, max_step_tokens=3)
    scheduler.add(Sequence(0, Request(key="a", prompt_token_ids=[5, 6, 7, 8, 9])))
    numbers = []
    for _ in range(2):
        step = scheduler.schedule()
        numbers.append(len(runner.run(step)))
        scheduler.commit(step)
    assert numbers == [0, 1]
