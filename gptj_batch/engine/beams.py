"""Beams: the beam searches that an engine runs, and the sequences that stand for their beams."""

from collections.abc import Iterator
from weakref import WeakKeyDictionary

from gptj_batch.engine.beam_offers import Offer
from gptj_batch.engine.beam_search import Beam, BeamSearch, num_candidates
from gptj_batch.engine.scheduler import Scheduler
from gptj_batch.engine.sequence import Group, Sequence
from gptj_batch.engine.stopping import RequestCodeError, stop_token_ids
from gptj_batch.requests import Request
from gptj_batch.results import Failed, Generated


class Beams:
    """Advance each search by what its beams offer, and let the scheduler follow.

    A group's sequences stand for the beams of its search that run, in the same order. A search is forgotten with its
    group, however that ends.
    """

    def __init__(self, scheduler: Scheduler, vocab_size: int, eos_token_ids: tuple[int, ...]) -> None:
        self._scheduler = scheduler
        self._vocab_size = vocab_size
        self._eos_token_ids = eos_token_ids
        self._searches: WeakKeyDictionary[Group, BeamSearch] = WeakKeyDictionary()

    def refuse(self, request: Request) -> str | None:
        """Return why a search that `Limits` lets in can never run, or None: the rule, the values found, what to do."""
        num_beams, max_step_tokens = request.sampling.num_beams, self._scheduler.bounds.max_step_tokens
        if num_beams == 1:
            return None
        if request.constraint is not None:
            return f"num_beams must be 1 with a constraint, got {num_beams}; search without one, or decode greedily"
        if num_beams > max_step_tokens:
            return (
                f"num_beams must not exceed max_step_tokens ({max_step_tokens}), got {num_beams}: all beams go through "
                "the model together; lower num_beams or raise max_step_tokens"
            )
        num_looked_at = num_candidates(request, self._eos_token_ids)
        if num_looked_at + len(stop_token_ids(request.sampling, self._eos_token_ids)) > self._vocab_size:
            return (
                f"a search must not look at more tokens than the vocabulary has ({self._vocab_size}) without those "
                f"that end a sequence, and num_beams {num_beams} looks at {num_looked_at}; lower it"
            )
        return self._refuse_blocks(request)

    def _refuse_blocks(self, request: Request) -> str | None:
        num_prompt_tokens, sampling = len(request.prompt_token_ids), request.sampling
        num_blocks = self._scheduler.pool.num_blocks
        needed = self._scheduler.blocks_for_group(num_prompt_tokens, sampling.max_new_tokens, sampling.num_beams)
        if needed <= num_blocks:
            return None
        return (
            f"all beams must fit the KV cache ({num_blocks} blocks), got {sampling.num_beams} beams of "
            f"{num_prompt_tokens} + {sampling.max_new_tokens} tokens, which take up to {needed}; enlarge the cache "
            "(kv_cache_gb, or EngineConfig's kv_cache_bytes or num_blocks), or lower num_beams or max_new_tokens"
        )

    def advance(self, offers: dict[Sequence, Offer]) -> Iterator[tuple[int, Generated | Failed]]:
        """Advance every search that has offers; yield the uids and results of those that this ends.

        offers: of all running beams of a search, or of none
        """
        for group in dict.fromkeys(sequence.group for sequence in offers):
            # A stop condition may have cancelled any group, its own included.
            result = self._advance(group, offers) if group.sequences else None
            if result is not None and group.sequences:
                uid = group.sequences[0].uid
                for sequence in group.sequences.copy():
                    self._scheduler.release(sequence)
                yield uid, result

    def _advance(self, group: Group, offers: dict[Sequence, Offer]) -> Generated | Failed | None:
        """Advance one search; return the result if that ends it."""
        request = group.sequences[0].request
        if group not in self._searches:
            self._searches[group] = BeamSearch(request, self._eos_token_ids)
        search = self._searches[group]
        finite = [offer for offer in (offers[sequence] for sequence in group.sequences) if offer is not None]
        if len(finite) < len(group.sequences):
            return Failed(
                key=request.key, error="the model's logits are not finite; try a wider dtype (bfloat16, float32)"
            )
        try:
            search.advance(finite)
        except RequestCodeError as error:
            return Failed(key=request.key, error=str(error))
        if search.is_done:
            return search.result() or Failed(key=request.key, error="no token can be generated; allow more of them")
        if group.sequences:
            self._follow(group, search.running)
        return None

    def _follow(self, group: Group, beams: list[Beam]) -> None:
        """Let the group's sequences become these beams: fork where there are too few, prune where too many."""
        sequences, parents = group.sequences.copy(), [beam.parent for beam in beams]
        for parent in parents[len(sequences) :]:
            child = Sequence(sequences[parent].uid, sequences[parent].request)
            self._scheduler.fork(sequences[parent], child)
        childless = [place for place in range(len(sequences)) if place not in parents]
        surplus = childless[: max(0, len(sequences) - len(beams))]
        for place in surplus:
            self._scheduler.prune(sequences[place])
        kept = [place for place in range(len(sequences)) if place not in surplus]
        self._scheduler.reorder(
            [sequences[place] for place in kept], [kept.index(parent) for parent in parents[: len(kept)]]
        )
        for sequence, beam in zip(group.sequences, beams, strict=True):
            sequence.append(beam.token_ids[-1])
