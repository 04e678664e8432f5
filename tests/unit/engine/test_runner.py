import torch

from gptj_batch import Request
from gptj_batch.engine.config import Bounds
from gptj_batch.engine.prepare import prepare_body, prepare_runner
from gptj_batch.engine.runner import Runner
from gptj_batch.engine.scheduler import Scheduler
from gptj_batch.engine.sequence import Sequence
from gptj_batch.model import GPTJForCausalLM


def make(model: GPTJForCausalLM, max_step_tokens: int) -> tuple[Runner, Scheduler]:
    bounds = Bounds(max_step_tokens=max_step_tokens, min_running=4, max_running=4, block_size_tokens=4, num_blocks=8)
    body = prepare_body(model, take_weights=False)
    return prepare_runner(model, body, bounds, use_kernels=False)[0], Scheduler(bounds)


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
