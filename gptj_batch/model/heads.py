"""GPT-J with a head: language modelling, sequence classification, question answering.

Shape letters: see gptj_batch.model.rotary.
"""

from typing import Any, Final, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptj_batch.errors import ConfigError
from gptj_batch.model.backbone import GPTJModel, GPTJPreTrainedModel, init_module
from gptj_batch.model.cache import Cache
from gptj_batch.model.config import GPTJConfig
from gptj_batch.model.outputs import (
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
    ModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutputWithPast,
)
from gptj_batch.model_folder import Head

IGNORED_LABEL = -100


class GPTJForCausalLM(GPTJPreTrainedModel):
    """GPT-J with its language modelling head."""

    def __init__(self, config: GPTJConfig) -> None:
        super().__init__(config)
        self.transformer = GPTJModel(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size)
        init_module(self.lm_head, config.initializer_range)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.transformer.wte.weight

    def forward(
        self,
        input_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        cache_position: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
    ) -> Any:
        """Run a batch; see `GPTJModel.forward` for the arguments that both have.

        labels: (B, S), int64; shifted inside, so labels = input_ids trains on the next token; -100 is ignored
        logits_to_keep: the last so many positions, 0 for all; or (any,), int64, the positions to keep
        returns: CausalLMOutputWithPast, or its tuple
        """
        body = _run_body(
            self.transformer,
            input_ids=input_ids,
            past_key_values=past_key_values,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            cache_position=cache_position,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        hidden = body.last_hidden_state
        logits = self.lm_head(hidden if isinstance(kept, slice) and logits_to_keep == 0 else hidden[:, kept])
        loss = None if labels is None else next_token_loss(logits, labels)
        output = CausalLMOutputWithPast(loss, logits, body.past_key_values, body.hidden_states, body.attentions)
        return _as_asked(output, self.config, return_dict)

    def generate(self, input_ids: Tensor, attention_mask: Tensor | None = None, **settings: Any) -> Tensor:
        """Continue prompts through the engine; see `gptj_batch.engine.generate.generate` for the settings.

        input_ids: (B, S), int64    attention_mask: (B, S), 0 for padding on either side
        returns: (B, S + new), int64; rows that end early are padded with pad_token_id, or else eos_token_id
        """
        # The one import against the layers, kept inside the call: the model alone needs no engine (DESIGN.md).
        from gptj_batch.engine.generate import generate

        return generate(self, input_ids, attention_mask, **settings)


class GPTJForSequenceClassification(GPTJPreTrainedModel):
    """GPT-J with a linear layer over the last token of each row."""

    def __init__(self, config: GPTJConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.transformer = GPTJModel(config)
        self.score = nn.Linear(config.n_embd, config.num_labels, bias=False)
        init_module(self.score, config.initializer_range)

    def forward(
        self,
        input_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Run a batch; see `GPTJModel.forward` for the arguments that both have.

        The logits are those of each row's last token that is not config.pad_token_id; without a pad token, or with
        inputs_embeds, those of the last position.

        labels: (B,), int64 for one label of C; (B, C), float for several at once; (B,) or (B, C), float for regression
        returns: SequenceClassifierOutputWithPast with logits (B, C), or its tuple
        """
        body = _run_body(
            self.transformer,
            input_ids=input_ids,
            past_key_values=past_key_values,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        hidden = body.last_hidden_state
        rows = torch.arange(hidden.shape[0], device=hidden.device)
        logits = self.score(hidden[rows, self._last_tokens(input_ids, hidden)])
        loss = None if labels is None else self._loss(logits, labels.to(logits.device))
        output = SequenceClassifierOutputWithPast(
            loss, logits, body.past_key_values, body.hidden_states, body.attentions
        )
        return _as_asked(output, self.config, return_dict)

    def _last_tokens(self, input_ids: Tensor | None, hidden: Tensor) -> Tensor:
        """Return the position of each row's last token that is not padding: (B,)."""
        batch_size, num_tokens, _ = hidden.shape
        pad = self.config.pad_token_id
        if pad is None or input_ids is None:
            return torch.full((batch_size,), num_tokens - 1, device=hidden.device)
        real = (input_ids != pad).to(hidden.device)
        return (torch.arange(num_tokens, device=hidden.device) * real).argmax(-1)

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Choose the loss by problem_type or, without one, by num_labels and the dtype of the labels."""
        problem = self.config.problem_type
        if problem is None and self.num_labels == 1:
            problem = "regression"
        elif problem is None:
            whole = labels.dtype in (torch.int32, torch.int64)
            problem = "single_label_classification" if whole else "multi_label_classification"
        if problem == "regression":
            return (
                F.mse_loss(logits.squeeze(), labels.squeeze()) if self.num_labels == 1 else F.mse_loss(logits, labels)
            )
        if problem == "single_label_classification":
            return F.cross_entropy(logits.view(-1, self.num_labels), labels.view(-1))
        return F.binary_cross_entropy_with_logits(logits, labels)


class GPTJForQuestionAnswering(GPTJPreTrainedModel):
    """GPT-J with a start and an end score for every token."""

    def __init__(self, config: GPTJConfig) -> None:
        super().__init__(config)
        if config.num_labels != 2:
            raise ConfigError(f"num_labels must be 2 for question answering (start, end), got {config.num_labels}")
        self.transformer = GPTJModel(config)
        self.qa_outputs = nn.Linear(config.n_embd, config.num_labels)
        init_module(self.qa_outputs, config.initializer_range)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Run a batch; see `GPTJModel.forward` for the arguments that both have.

        start_positions, end_positions: (B,), int64; clamped into the sequence, and ignored where they lie behind it
        returns: QuestionAnsweringModelOutput with start_logits and end_logits (B, S), or its tuple
        """
        body = _run_body(
            self.transformer,
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        start_logits, end_logits = self.qa_outputs(body.last_hidden_state).unbind(-1)
        start_logits, end_logits = start_logits.contiguous(), end_logits.contiguous()
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = (_span_loss(start_logits, start_positions) + _span_loss(end_logits, end_positions)) / 2
        output = QuestionAnsweringModelOutput(loss, start_logits, end_logits, body.hidden_states, body.attentions)
        return _as_asked(output, self.config, return_dict)


class GPTJWithoutHead(GPTJPreTrainedModel):
    """GPT-J's body in the place where the classes with a head have it, read from a checkpoint of any class.

    It has no `forward`: the engine runs its blocks.
    """

    def __init__(self, config: GPTJConfig) -> None:
        super().__init__(config)
        self.transformer = GPTJModel(config)


HeadModel = GPTJForCausalLM | GPTJForSequenceClassification | GPTJForQuestionAnswering | GPTJWithoutHead
MODEL_CLASSES: Final[dict[Head, type[HeadModel]]] = {
    "causal-lm": GPTJForCausalLM,
    "sequence-classification": GPTJForSequenceClassification,
    "question-answering": GPTJForQuestionAnswering,
    "none": GPTJWithoutHead,
}


def next_token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross entropy of every next token, in float32; labels of -100 do not count.

    logits: (B, S, V)    labels: (B, S), int64    returns: ()
    """
    shifted = F.pad(labels.to(logits.device), (0, 1), value=IGNORED_LABEL)[..., 1:]
    return F.cross_entropy(logits.float().flatten(0, -2), shifted.flatten(), ignore_index=IGNORED_LABEL)


def _span_loss(logits: Tensor, positions: Tensor) -> Tensor:
    """logits: (B, S)    positions: (B,) or (B, 1)    returns: ()."""
    behind = logits.shape[1]
    return F.cross_entropy(logits, positions.reshape(-1).to(logits.device).clamp(0, behind), ignore_index=behind)


def _run_body(body: GPTJModel, **arguments: Any) -> BaseModelOutputWithPast:
    return cast(BaseModelOutputWithPast, body(return_dict=True, **arguments))


def _as_asked(output: ModelOutput, config: GPTJConfig, return_dict: bool | None) -> Any:
    return output if (config.return_dict if return_dict is None else return_dict) else output.to_tuple()
