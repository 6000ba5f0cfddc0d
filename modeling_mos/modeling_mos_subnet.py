# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""
Subnets taken out of a Mixture-of-Supernets model: fixed small encoders with layers of different widths.

Dataflow of layer l at width d_l (neighbouring bottlenecks are merged): a projection from the previous
layer's width, post-norm self-attention and feed-forward at width d_l; after the last layer a projection back to
`hidden_size`. The embeddings, the heads and the slicing layers below are shared with the supernet.
"""

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from transformers.activations import ACT2FN
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutputWithPooling,
    MaskedLMOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.utils.generic import can_return_tuple

from .attention import dropout_attention_forward, eager_attention_forward, has_costly_dropout
from .configuration_mos_subnet import MosSubnetConfig
from .gradients import WordEmbedding, adds_in_place, gradient_of, is_part, leading
from .kept_tokens import FIRST_TOKEN, check_tokens_to_keep, keep_tokens, refuse_tokens_to_keep


class LinearInPlace(torch.autograd.Function):
    """A linear layer that acts as its top-left part, and sums the products of gradients into its parameters'."""

    @staticmethod
    def forward(ctx, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, out_features: int | None):
        part = weight[:out_features, : hidden.shape[-1]]
        ctx.weight, ctx.bias = weight, bias
        # What PyTorch's own saves, and no more: a checkpointed layer may be run again outside of the context.
        ctx.save_for_backward(hidden.flatten(0, -2), part.t() if ctx.needs_input_grad[0] else None)
        return F.linear(hidden, part, bias[:out_features])

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: torch.Tensor):
        hidden, part = ctx.saved_tensors
        shape, gradient = gradient.shape[:-1], gradient.flatten(0, -2)
        rows, columns = gradient.shape[-1], hidden.shape[-1]
        if ctx.weight.grad is None and (rows, columns) == ctx.weight.shape:
            ctx.weight.grad = gradient.t() @ hidden
        else:
            gradient_of(ctx.weight)[:rows, :columns].addmm_(gradient.t(), hidden)
        gradient_of(ctx.bias)[:rows].add_(gradient.sum(dim=0))
        of_hidden = None if part is None else (gradient @ part.t()).unflatten(0, shape)
        return of_hidden, None, None, None


class ElasticLinear(nn.Linear):
    """A linear layer that can act as its own top-left slice: inputs are sliced to the width they arrive at."""

    def forward(self, hidden: torch.Tensor, out_features: int | None = None) -> torch.Tensor:
        if self._adds_in_place(hidden, out_features):
            return LinearInPlace.apply(hidden, self.weight, self.bias, out_features)
        bias = self.bias if self.bias is None else leading(self.bias, out_features)
        return F.linear(hidden, leading(self.weight, out_features, hidden.shape[-1]), bias)

    def _adds_in_place(self, hidden: torch.Tensor, out_features: int | None) -> bool:
        # A function in Python takes 0.2 ms a call more than PyTorch's own, which parts and vocabularies are worth.
        if not is_part(self.weight, (out_features, hidden.shape[-1])) and self.weight.numel() < 2**24:
            return False
        if hidden.dim() == 1 or self.bias is None or not (adds_in_place(self.weight) and adds_in_place(self.bias)):
            return False
        return not torch.is_autocast_enabled(hidden.device.type)  # products would be of another type


class ElasticLayerNorm(nn.LayerNorm):
    """A layer norm over the width its input arrives at, with the leading gains and biases."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        width = hidden.shape[-1]
        return F.layer_norm(hidden, (width,), self.weight[:width], self.bias[:width], self.eps)


class MosAttentionBase(nn.Module):
    """Multi-head attention through the attention interface of transformers, for any width and number of heads."""

    is_causal = False

    def __init__(self, config):
        super().__init__()
        self.config = config

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        num_heads: int,
        attention_mask: torch.Tensor | None,
        tokens_to_keep: torch.Tensor | tuple | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Args:
            query, key, value (`torch.Tensor` of shape `(batch, tokens, width)`): Projections, heads side by side.
            num_heads (`int`): Heads to split the width into.
            tokens_to_keep (*optional*): Index of `(batch, tokens)`: whose context to return.

        Returns:
            The context of shape `(batch, tokens, width)` and the weights of shape `(batch, heads, tokens, tokens)`,
            or `None` where the implementation does not return them.
        """
        batch, tokens, width = query.shape
        query, key, value = (
            states.view(batch, tokens, num_heads, width // num_heads).transpose(1, 2) for states in (query, key, value)
        )
        dropout = self.config.attention_probs_dropout_prob if self.training else 0.0
        interface = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        if has_costly_dropout(self.config, query, dropout):
            interface = dropout_attention_forward
        context, weights = interface(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=dropout,
            # The same that attention takes by itself, where a number would have to be one of its graph.
            scaling=None if torch.compiler.is_compiling() else (width // num_heads) ** -0.5,
            **kwargs,
        )
        return keep_tokens(context.reshape(batch, tokens, width), tokens_to_keep), weights


class MosEmbeddings(nn.Module):
    """Word, position and token type embeddings, normalised; position ids follow the backbone's family."""

    def __init__(self, config):
        super().__init__()
        self.padding_idx = config.pad_token_id
        self.roberta_layout = config.roberta_layout
        self.word_embeddings = WordEmbedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(
            config.max_position_embeddings,
            config.hidden_size,
            padding_idx=config.pad_token_id if config.roberta_layout else None,
        )
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.norm = ElasticLayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        input_ids: torch.Tensor | None,
        token_type_ids: torch.Tensor | None,
        position_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None,
        width: int | None = None,
    ) -> torch.Tensor:
        if position_ids is None:
            position_ids = self._position_ids(input_ids, inputs_embeds)
        embedded = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        if token_type_ids is None:
            token_types = self.token_type_embeddings.weight[0]
        else:
            token_types = self.token_type_embeddings(token_type_ids)
        embedded = embedded + token_types + self.position_embeddings(position_ids)
        return self.dropout(self.norm(embedded[..., :width]))

    def _position_ids(self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None) -> torch.Tensor:
        reference = inputs_embeds if input_ids is None else input_ids
        positions = torch.arange(reference.shape[1], device=reference.device).unsqueeze(0)
        if not self.roberta_layout:
            return positions
        if input_ids is None:
            return positions + self.padding_idx + 1
        real = input_ids.ne(self.padding_idx).long()
        return real.cumsum(dim=1) * real + self.padding_idx


class MosPooler(nn.Module):
    """A dense layer and tanh over the first token."""

    def __init__(self, config):
        super().__init__()
        self.dense = ElasticLinear(config.hidden_size, config.hidden_size)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.dense(hidden[:, 0], hidden.shape[-1]))


class MosLMHead(nn.Module):
    """Dense, activation, norm and a decoder that is tied to the word embeddings."""

    def __init__(self, config):
        super().__init__()
        self.dense = ElasticLinear(config.hidden_size, config.hidden_size)
        self.activation = ACT2FN["gelu" if config.roberta_layout else config.hidden_act]
        self.norm = ElasticLayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.decoder = ElasticLinear(config.hidden_size, config.vocab_size)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.norm(self.activation(self.dense(hidden, hidden.shape[-1]))))


class MosClassificationHead(nn.Module):
    """First token, dense, tanh, output: BERT's pooler and classifier, or RoBERTa's classification head."""

    def __init__(self, config):
        super().__init__()
        self.dense = ElasticLinear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(_classifier_dropout(config))
        self.out_proj = ElasticLinear(config.hidden_size, config.num_labels)
        self.input_dropout = self.dropout if config.roberta_layout else nn.Identity()

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        first = self.input_dropout(hidden[:, 0])
        return self.out_proj(self.dropout(torch.tanh(self.dense(first, first.shape[-1]))))


def _classifier_dropout(config) -> float:
    return config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout


def classification_loss(logits: torch.Tensor, labels: torch.Tensor, config) -> torch.Tensor:
    """
    Mean squared error, cross entropy or binary cross entropy, by `config.problem_type`.

    Args:
        logits (`torch.Tensor` of shape `(batch, num_labels)`): Scores.
        labels (`torch.Tensor` of shape `(batch,)`, or `(batch, num_labels)` for several): Targets.
    """
    problem = config.problem_type
    if problem is None:
        if config.num_labels == 1:
            problem = "regression"
        else:
            problem = "multi_label_classification" if labels.is_floating_point() else "single_label_classification"
    if problem == "regression":
        return F.mse_loss(logits.reshape(labels.shape), labels.to(logits.dtype))
    if problem == "single_label_classification":
        return F.cross_entropy(logits.view(-1, config.num_labels), labels.view(-1))
    return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))


# ---- heads, shared by the supernet and its subnets: `self.base_model` is the encoder -------------------------------


class MaskedLMHeadMixin:
    """Masked language modeling on top of `base_model`."""

    _auto_class = "AutoModelForMaskedLM"
    _tied_weights_keys = {}
    # The loss is divided by `num_items_in_batch`, so that accumulated micro-batches equal one large batch.
    accepts_loss_kwargs = True

    def _add_head(self, config):
        self.lm_head = MosLMHead(config)

    def get_output_embeddings(self):
        return self.lm_head.decoder

    def set_output_embeddings(self, new_embeddings):
        if not isinstance(new_embeddings, ElasticLinear):
            # Resizing makes a plain linear layer, which could not act at a narrower width.
            plain, sizes = new_embeddings, (new_embeddings.in_features, new_embeddings.out_features)
            new_embeddings = ElasticLinear(*sizes, bias=plain.bias is not None, device="meta")
            new_embeddings.weight, new_embeddings.bias = plain.weight, plain.bias
        self.lm_head.decoder = new_embeddings

    @staticmethod
    def _head_costs(config, width: int, sequence_length: int) -> tuple[int, int]:
        """(parameters, FLOPs) of the head at an encoder width; a tied decoder counts its bias only."""
        parameters = width * width + 3 * width + config.vocab_size
        if not config.tie_word_embeddings:
            parameters += width * config.vocab_size
        return parameters, 2 * sequence_length * (width * width + width * config.vocab_size)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs,
    ) -> MaskedLMOutput:
        r"""
        labels (`torch.LongTensor` of shape `(batch, tokens)`, *optional*):
            Token ids to predict, -100 where nothing is asked.
        num_items_in_batch (`int`, *optional*):
            Number of labelled tokens of the whole optimizer step; the loss is their sum divided by it instead of the
            mean over this batch.

        `logits` have the shape `(batch, tokens, vocab_size)`; with `config.sparse_prediction`, in training mode and
        with labels, `(labelled tokens, vocab_size)`, for which alone the end of the last layer is run then.
        """
        refuse_tokens_to_keep(kwargs)
        if self.config.sparse_prediction and self.training and labels is not None:
            # As numbers, which are looked for once: a mask would be searched by each index with it.
            asked = (labels != -100).nonzero(as_tuple=True)
            labels, kwargs = labels[asked], {**kwargs, "tokens_to_keep": asked}
        outputs = self.base_model(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, return_dict=True, **kwargs
        )
        logits = self.lm_head(outputs.last_hidden_state)
        loss = None
        if labels is not None:
            scores, targets = logits.view(-1, logits.shape[-1]).float(), labels.reshape(-1)
            loss = F.cross_entropy(scores, targets, reduction="sum")
            # A batch, or a whole optimizer step, may hold no labelled token.
            items = (targets != -100).sum() if num_items_in_batch is None else num_items_in_batch
            loss = loss / (items.clamp(min=1) if torch.is_tensor(items) else max(items, 1))
        return MaskedLMOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )

    def scores_of(self, tokens: tuple[torch.Tensor, torch.Tensor], **inputs) -> torch.Tensor:
        """
        Vocabulary scores of some tokens only, which is all that a loss needs.

        Args:
            tokens (`tuple` of two `torch.Tensor` of shape `(count,)`):
                Rows and columns of the tokens, such as `(labels != -100).nonzero(as_tuple=True)`.
            inputs: Those of the encoder.

        Returns:
            `torch.Tensor` of shape `(count, vocab_size)`.
        """
        return self.lm_head(self.base_model(**inputs, tokens_to_keep=tokens).last_hidden_state)


class SequenceClassificationHeadMixin:
    """Classification (single- or multi-label) or regression of the first token, on top of `base_model`."""

    _auto_class = "AutoModelForSequenceClassification"

    def _add_head(self, config):
        self.classifier = MosClassificationHead(config)

    @staticmethod
    def _head_costs(config, width: int, sequence_length: int) -> tuple[int, int]:
        parameters = width * width + width + width * config.num_labels + config.num_labels
        return parameters, 2 * (width * width + width * config.num_labels)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs,
    ) -> SequenceClassifierOutput:
        r"""
        labels (`torch.Tensor` of shape `(batch,)` or `(batch, num_labels)`, *optional*):
            Class indices; floats for regression; multi-hot floats for multi-label classification.

        `logits` have the shape `(batch, num_labels)`.
        """
        refuse_tokens_to_keep(kwargs)
        if self.training:  # evaluation does what `count_flops` counts
            kwargs["tokens_to_keep"] = FIRST_TOKEN
        outputs = self.base_model(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, return_dict=True, **kwargs
        )
        logits = self.classifier(outputs.last_hidden_state)
        loss = None if labels is None else classification_loss(logits, labels, self.config)
        return SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class TokenClassificationHeadMixin:
    """Classification of every token, on top of `base_model`."""

    _auto_class = "AutoModelForTokenClassification"

    def _add_head(self, config):
        self.dropout = nn.Dropout(_classifier_dropout(config))
        self.classifier = ElasticLinear(config.hidden_size, config.num_labels)

    @staticmethod
    def _head_costs(config, width: int, sequence_length: int) -> tuple[int, int]:
        parameters = width * config.num_labels + config.num_labels
        return parameters, 2 * sequence_length * width * config.num_labels

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs,
    ) -> TokenClassifierOutput:
        r"""
        labels (`torch.LongTensor` of shape `(batch, tokens)`, *optional*):
            Class of each token, -100 to ignore it.

        `logits` have the shape `(batch, tokens, num_labels)`.
        """
        refuse_tokens_to_keep(kwargs)
        outputs = self.base_model(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, return_dict=True, **kwargs
        )
        logits = self.classifier(self.dropout(outputs.last_hidden_state))
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits.view(-1, self.config.num_labels), labels.view(-1))
        return TokenClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class QuestionAnsweringHeadMixin:
    """Start and end of an answer span, on top of `base_model`."""

    _auto_class = "AutoModelForQuestionAnswering"

    def _add_head(self, config):
        self.qa_outputs = ElasticLinear(config.hidden_size, 2)

    @staticmethod
    def _head_costs(config, width: int, sequence_length: int) -> tuple[int, int]:
        return 2 * width + 2, 2 * sequence_length * width * 2

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        start_positions: torch.Tensor | None = None,
        end_positions: torch.Tensor | None = None,
        **kwargs,
    ) -> QuestionAnsweringModelOutput:
        r"""
        start_positions, end_positions (`torch.LongTensor` of shape `(batch,)`, *optional*):
            First and last token of the answer; positions outside the sequence are ignored.

        `start_logits` and `end_logits` have the shape `(batch, tokens)`.
        """
        refuse_tokens_to_keep(kwargs)
        outputs = self.base_model(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, return_dict=True, **kwargs
        )
        start_logits, end_logits = self.qa_outputs(outputs.last_hidden_state).unbind(dim=-1)
        loss = None
        if start_positions is not None and end_positions is not None:
            length = start_logits.shape[1]
            starts, ends = (positions.view(-1).clamp(0, length) for positions in (start_positions, end_positions))
            loss = F.cross_entropy(start_logits, starts, ignore_index=length)
            loss = (loss + F.cross_entropy(end_logits, ends, ignore_index=length)) / 2
        return QuestionAnsweringModelOutput(
            loss=loss,
            start_logits=start_logits,
            end_logits=end_logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    @torch.no_grad()
    def predict_spans(
        self,
        tokenizer,
        question: str,
        context: str,
        top_k: int = 1,
        max_length: int = 384,
        stride: int = 128,
        max_answer_length: int = 30,
        batch_size: int = 8,
        **kwargs,
    ) -> list[dict[str, Any]]:
        """
        Answers a question from a context of any length, which a window slides over (transformers 5 has no
        question answering pipeline).

        Args:
            tokenizer: The model's (fast) tokenizer.
            question, context (`str`): The texts.
            top_k (`int`, *optional*, defaults to 1): How many different answers to return, best first.
            max_length, stride (`int`, *optional*, defaults to 384 and 128): Tokens of a window, the question included,
                and how many of them neighbouring windows share; both shrink to what the model can take.
            max_answer_length (`int`, *optional*, defaults to 30): Longest answer in tokens.
            batch_size (`int`, *optional*, defaults to 8): Windows evaluated at once.
            kwargs: Passed to the model, such as `architecture`.

        Returns:
            `list[dict]` with `answer`, `start` and `end` (characters of the context) and `score` (probability among
            the spans considered). Fewer than `top_k` where the context has fewer spans.

        Raises:
            ValueError: if the context is empty or the question leaves no room for it, or they are no strings.
        """
        if not isinstance(question, str) or not isinstance(context, str):
            raise ValueError(
                f"`predict_spans` takes one question and one context, got a {type(question).__name__} and a "
                f"{type(context).__name__}; call it once for each pair."
            )
        if not context.strip():
            raise ValueError("The context is empty; there is nothing to answer from.")
        config = self.config
        positions = config.max_position_embeddings - (config.pad_token_id + 1 if config.roberta_layout else 0)
        max_length = min(max_length, positions)
        asked = len(tokenizer(question, add_special_tokens=False)["input_ids"])
        room = max_length - asked - tokenizer.num_special_tokens_to_add(pair=True)
        if room < 1:
            raise ValueError(
                f"The question takes {max_length - room} of {max_length} tokens, which leaves no room for the "
                "context; shorten it or raise max_length."
            )
        windows = tokenizer(
            question,
            context,
            truncation="only_second",
            max_length=max_length,
            stride=min(stride, room - 1),
            padding=True,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            return_tensors="pt",
        )
        names = [name for name in tokenizer.model_input_names if name in windows]
        was_training = self.training
        self.eval()
        try:
            outputs = [
                self(**{name: windows[name][first : first + batch_size].to(self.device) for name in names}, **kwargs)
                for first in range(0, len(windows["input_ids"]), batch_size)
            ]
        finally:
            self.train(was_training)
        every_start, every_end = (
            torch.cat([output[name].float().cpu() for output in outputs]) for name in ("start_logits", "end_logits")
        )
        best: dict[tuple[int, int], float] = {}
        for index, (starts, ends) in enumerate(zip(every_start, every_end, strict=True)):
            inside = torch.tensor([part == 1 for part in windows.sequence_ids(index)])
            scores = starts[:, None] + ends[None, :]
            allowed = inside[:, None] & inside[None, :]
            allowed = allowed.triu() & ~allowed.triu(diagonal=max_answer_length)
            scores = scores.masked_fill(~allowed, -torch.inf).flatten()
            kept = min(20 * top_k, int(allowed.sum()))
            for score, position in zip(*(found.tolist() for found in scores.topk(kept)), strict=True):
                start, end = divmod(position, len(starts))
                offsets = windows["offset_mapping"][index]
                span = (int(offsets[start][0]), int(offsets[end][1]))
                best[span] = max(score, best.get(span, -torch.inf))
        ranked = sorted(best.items(), key=lambda item: (-item[1], item[0]))
        probabilities = torch.tensor([score for _, score in ranked]).softmax(dim=0).tolist()
        return [
            {"answer": context[start:end], "start": start, "end": end, "score": probability}
            for ((start, end), _), probability in zip(ranked[:top_k], probabilities, strict=False)
        ]


# ---- the subnet -----------------------------------------------------------------------------------------------------


class MosSubnetAttention(MosAttentionBase):
    def __init__(self, config, width: int, num_heads: int):
        super().__init__(config)
        self.num_heads = num_heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def forward(self, hidden: torch.Tensor, attention_mask: torch.Tensor | None, **kwargs):
        context, weights = self.attend(
            self.query(hidden), self.key(hidden), self.value(hidden), self.num_heads, attention_mask, **kwargs
        )
        return self.output(context), weights


class MosSubnetLayer(GradientCheckpointingLayer):
    """One layer with the projection from its predecessor's width."""

    def __init__(self, config, index: int):
        super().__init__()
        width = config.hidden_sizes[index]
        previous = config.hidden_sizes[index - 1] if index else config.hidden_size
        self.projection = nn.Linear(previous, width)
        self.attention = MosSubnetAttention(config, width, config.num_attention_heads[index])
        self.attention_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.intermediate = nn.Linear(width, config.intermediate_sizes[index])
        self.activation = ACT2FN[config.hidden_act]
        self.output = nn.Linear(config.intermediate_sizes[index], width)
        self.output_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        hidden: torch.Tensor,
        attention_mask: torch.Tensor | None,
        tokens_to_keep: torch.Tensor | tuple | None = None,
        **kwargs,
    ):
        hidden = self.projection(hidden)
        attended, weights = self.attention(hidden, attention_mask, tokens_to_keep=tokens_to_keep, **kwargs)
        hidden = self.attention_norm(self.dropout(attended) + keep_tokens(hidden, tokens_to_keep))
        fed = self.output(self.activation(self.intermediate(hidden)))
        return self.output_norm(self.dropout(fed) + hidden), weights


class MosSubnetPreTrainedModel(PreTrainedModel):
    """What all subnets with bottlenecks share."""

    config: MosSubnetConfig
    base_model_prefix = "subnet"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _supports_sdpa = True
    _supports_attention_backend = True
    _no_split_modules = ["MosSubnetLayer"]

    def count_parameters(self) -> int:
        """Under the supernet's name for it; `num_parameters()`."""
        return self.num_parameters()


class MosSubnetModel(MosSubnetPreTrainedModel):
    """The bare subnet: `last_hidden_state` of shape `(batch, tokens, hidden_size)`."""

    _auto_class = "AutoModel"

    def __init__(self, config: MosSubnetConfig, add_pooling_layer: bool = True):
        super().__init__(config)
        self.embeddings = MosEmbeddings(config)
        self.layers = nn.ModuleList([MosSubnetLayer(config, index) for index in range(config.num_hidden_layers)])
        self.projection = nn.Linear(config.hidden_sizes[-1], config.hidden_size)
        self.pooler = MosPooler(config) if add_pooling_layer else None
        self.post_init()

    def get_input_embeddings(self):
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value):
        self.embeddings.word_embeddings = value

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        tokens_to_keep: torch.Tensor | tuple | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        r"""
        tokens_to_keep (`torch.Tensor` or `tuple`, *optional*):
            A mask of shape `(batch, tokens)`, what `mask.nonzero(as_tuple=True)` makes of it, or two slices, such as
            `(slice(None), slice(0, 1))` for first tokens: `last_hidden_state` holds those only (of shape `(count, …)`
            for a mask), and unless hidden states are returned, what follows the last layer's attention runs for them
            alone. There is no `pooler_output` then.

        `hidden_states` holds the embeddings' output, then each layer's at the layer's own width.

        Raises:
            TypeError: if `tokens_to_keep` is no such index.
            ValueError: for a mask of another shape, or unless exactly one of `input_ids` and `inputs_embeds` is given.
        """
        output_hidden_states, output_attentions = requested_outputs(self, output_hidden_states, output_attentions)
        check_inputs(input_ids, inputs_embeds)
        hidden = self.embeddings(input_ids, token_type_ids, position_ids, inputs_embeds)
        check_tokens_to_keep(tokens_to_keep, hidden.shape[:2])
        mask = create_bidirectional_mask(self.config, inputs_embeds=hidden, attention_mask=attention_mask)
        all_hidden, all_weights = (hidden,), ()
        for position, layer in enumerate(self.layers):
            whole = output_hidden_states or position < len(self.layers) - 1
            hidden, weights = layer(hidden, mask, tokens_to_keep=None if whole else tokens_to_keep, **kwargs)
            all_hidden += (hidden,)
            all_weights += (weights,)
        hidden = self.projection(keep_tokens(hidden, tokens_to_keep) if output_hidden_states else hidden)
        return BaseModelOutputWithPooling(
            last_hidden_state=hidden,
            pooler_output=None if self.pooler is None or tokens_to_keep is not None else self.pooler(hidden),
            hidden_states=all_hidden if output_hidden_states else None,
            attentions=all_weights if output_attentions else None,
        )


def check_inputs(input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None) -> None:
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("You must specify exactly one of `input_ids` and `inputs_embeds`.")


def requested_outputs(model, hidden_states: bool | None, attentions: bool | None) -> tuple[bool, bool]:
    """
    What to return beyond the last hidden state; the configuration decides where the call does not.

    Raises:
        ValueError: if attention weights are asked of an implementation that does not return them.
    """
    config = model.config
    hidden_states = config.output_hidden_states if hidden_states is None else hidden_states
    attentions = config.output_attentions if attentions is None else attentions
    if attentions and config._attn_implementation != "eager":
        raise ValueError(
            f"attn_implementation={config._attn_implementation!r} does not return attention weights; call "
            '`model.set_attn_implementation("eager")` first.'
        )
    return bool(hidden_states), bool(attentions)


class MosSubnetForMaskedLM(MaskedLMHeadMixin, MosSubnetPreTrainedModel):
    """A subnet with a masked language modeling head."""

    _tied_weights_keys = {"lm_head.decoder.weight": "subnet.embeddings.word_embeddings.weight"}

    def __init__(self, config: MosSubnetConfig):
        super().__init__(config)
        self.subnet = MosSubnetModel(config, add_pooling_layer=False)
        self._add_head(config)
        self.post_init()


class MosSubnetForSequenceClassification(SequenceClassificationHeadMixin, MosSubnetPreTrainedModel):
    """A subnet with a sequence classification or regression head."""

    def __init__(self, config: MosSubnetConfig):
        super().__init__(config)
        self.subnet = MosSubnetModel(config, add_pooling_layer=False)
        self._add_head(config)
        self.post_init()


class MosSubnetForTokenClassification(TokenClassificationHeadMixin, MosSubnetPreTrainedModel):
    """A subnet with a token classification head."""

    def __init__(self, config: MosSubnetConfig):
        super().__init__(config)
        self.subnet = MosSubnetModel(config, add_pooling_layer=False)
        self._add_head(config)
        self.post_init()


class MosSubnetForQuestionAnswering(QuestionAnsweringHeadMixin, MosSubnetPreTrainedModel):
    """A subnet with a span prediction head."""

    def __init__(self, config: MosSubnetConfig):
        super().__init__(config)
        self.subnet = MosSubnetModel(config, add_pooling_layer=False)
        self._add_head(config)
        self.post_init()


__all__ = [
    "MosSubnetForMaskedLM",
    "MosSubnetForQuestionAnswering",
    "MosSubnetForSequenceClassification",
    "MosSubnetForTokenClassification",
    "MosSubnetModel",
    "MosSubnetPreTrainedModel",
]
