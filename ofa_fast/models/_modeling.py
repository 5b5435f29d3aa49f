"""What a factorised model does differently from its stock class: its table, its head, its loss."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from contextlib import contextmanager, nullcontext

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers.utils import logging

from ofa_fast.nn import FactorizedEmbedding, FactorizedHead, tied_gradient

logger = logging.get_logger("ofa_fast.models")


class _TablesOnMeta(TorchFunctionMode):
    """Stock constructors allocate [V, D] tables; here these get no memory, as they are replaced at once."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows = rows

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.empty and args and isinstance(args[0], tuple) and args[0][0] == self.rows:
            kwargs = {**kwargs, "device": "meta"}
        return func(*args, **kwargs)


class ScaledEmbedding(FactorizedEmbedding):
    """An embedding whose rows are multiplied on their way into the model, as in Gemma and BART.

    As in the stock modules, ``weight`` is the table before that, which a tied head uses as it is.
    """

    def __init__(self, *args, scale: float, rounded: bool, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.scale, self.rounded = scale, rounded

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        # Gemma was trained with its scale rounded to the table's dtype, BART with an exact one.
        scale = self.coordinates.new_full((), self.scale) if self.rounded else self.scale
        return super().forward(input_ids) * scale

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, scale={self.scale:g}"


def _factorized(table: nn.Module, rank: int, owner: type) -> FactorizedEmbedding:
    """The factorised twin of a stock input embedding.

    Scaled embeddings have a class in each architecture that has them, all an ``nn.Embedding`` with one attribute
    more, ``embed_scale``: a float, or a buffer of a rounded one.
    """
    kind = type(table)
    if isinstance(table, FactorizedEmbedding):
        return table  # transformers' generic classifiers make their base through AutoModel, which gives them a twin
    if issubclass(kind, nn.Embedding):
        shape = (table.num_embeddings, rank, table.embedding_dim)
        if kind is nn.Embedding:
            return FactorizedEmbedding(*shape, padding_idx=table.padding_idx)
        if hasattr(table, "embed_scale") and [name for name, _ in table.named_parameters()] == ["weight"]:
            scale = float(getattr(table, "scalar_embed_scale", table.embed_scale))  # a buffer may be on meta
            rounded = isinstance(table.embed_scale, torch.Tensor)
            return ScaledEmbedding(*shape, padding_idx=table.padding_idx, scale=scale, rounded=rounded)
    raise ValueError(
        f"{owner.__name__} embeds through {kind.__name__}, which is neither nn.Embedding nor that times a scale"
    )


class LanguageModelHead(FactorizedHead):
    """A head that can take the loss and hand its hidden states on, so that a stock forward pass ends before the logits.

    The loss is taken in the head's own forward, which is when offloading and sharding bring its parameters in.
    """

    _take: Callable[[torch.Tensor], None] | None = None

    def forward(self, hidden: torch.Tensor, *args, **options) -> torch.Tensor:
        if self._take is None:
            return super().forward(hidden, *args, **options)
        self._take(hidden)
        return hidden

    @contextmanager
    def taking_loss(self, labels: torch.Tensor, bias: torch.Tensor | None, reduction: str):
        """Inside, the head is the identity; yields the list of what it was given, each with its loss.

        ``bias`` [V] stands in for the head's own, if it has none.
        """
        taken = []

        def take(hidden: torch.Tensor) -> None:
            own = self.bias if bias is None else bias
            taken.append((hidden, self._loss(hidden, labels.to(hidden.device), own, reduction=reduction)))

        self._take = take
        try:
            yield taken
        finally:
            self._take = None


class FactorizedModel:
    """Mixin in front of a stock transformers model class.

    The input embedding is a ``FactorizedEmbedding``. An output head over the vocabulary becomes a ``FactorizedHead``:
    tied to the embedding where the configuration ties them, with coordinates and a basis of its own otherwise.
    """

    _factorized = False
    _loss_from_hidden = True
    _adds_only_bias = False

    def __init__(self, config, *args, **kwargs) -> None:
        with _TablesOnMeta(config.get_text_config().vocab_size):
            super().__init__(config, *args, **kwargs)
        self._factorize()
        super().post_init()

    def post_init(self) -> None:
        """Left to ``__init__``: the stock constructor calls this before the table is replaced."""

    @classmethod
    def is_custom_code(cls) -> bool:
        # Transformers skips the initialisation rules that a custom model has for its containers. Ours are stock rules.
        return False

    def _factorize(self) -> None:
        config = self.config.get_text_config()
        table, head = self.get_input_embeddings(), self.get_output_embeddings()
        if head is not None and type(head) is not nn.Linear:
            raise ValueError(f"{type(self).stock_class.__name__} has {type(head).__name__} as its head, not nn.Linear")
        embedding = _factorized(table, config.rank, type(self).stock_class)
        self.set_input_embeddings(embedding)
        if head is not None:
            tied = getattr(config, "tie_word_embeddings", False)
            untied_shape = (table.num_embeddings, config.rank, table.embedding_dim)
            source = embedding if tied else FactorizedEmbedding(*untied_shape)
            new = LanguageModelHead(source, bias=head.bias is not None)
            self.set_output_embeddings(new)
            if not tied:  # BERT's has the head's bias under a second name, which is only loaded where ends are tied
                _part(self, new)
        for module in self.modules():
            if isinstance(module, PreTrainedModel):
                for attribute in ("_tied_weights_keys", "all_tied_weights_keys"):
                    keys = getattr(module, attribute, None)
                    if keys:
                        setattr(module, attribute, _tied_factors(module, keys))
            self._materialize(module)
        self._factorized = True

    def set_input_embeddings(self, value: nn.Module) -> None:
        """As in transformers, ``tie_weights`` then ties the head to it.

        Raises:
            TypeError: ``value`` is no ``FactorizedEmbedding``.
        """
        if self._factorized and not isinstance(value, FactorizedEmbedding):
            raise TypeError(
                f"value must be a FactorizedEmbedding, got {type(value).__name__}; "
                "FactorizedEmbedding.from_dense makes one of a table, to_dense a model with a dense table"
            )
        super().set_input_embeddings(value)
        if self._factorized:
            self.config.get_text_config().rank = value.rank

    def _hands_on(self, hidden: torch.Tensor, logits: torch.Tensor, added: torch.Tensor | None) -> bool:
        """Whether a deferring head's output became the stock logits with nothing but ``final_logits_bias`` added.

        Adding makes a new tensor, so where there is such a bias the values are compared, in the first step only.
        """
        if added is not None and not self._adds_only_bias:
            self._adds_only_bias = torch.equal(logits.to(hidden.dtype), hidden)
        return logits is hidden or self._adds_only_bias

    @staticmethod
    def _materialize(module: nn.Module) -> None:
        """Allocate what ``_TablesOnMeta`` took for a table of the vocabulary but is something else of that size."""
        if torch.empty(0).device.type == "meta":
            return
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.device.type == "meta":
                setattr(module, name, nn.Parameter(torch.empty_like(parameter, device=torch.empty(0).device)))
                module._is_hf_initialized = False

    def initialize_weights(self) -> None:
        """Stock rules, but for the table."""
        for module in self.modules():
            if isinstance(module, (FactorizedEmbedding, FactorizedHead)):
                loaded = [getattr(parameter, "_is_hf_initialized", False) for parameter in module.parameters()]
                if not any(loaded):
                    module.reset_parameters()
                elif not all(loaded):  # a head that is tied to a table which is there already
                    nn.init.zeros_(module.bias)
                for initialized in (module, *module.parameters()):
                    initialized._is_hf_initialized = True
        with _stand_ins(self):
            super().initialize_weights()

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> FactorizedEmbedding:
        """As in transformers: rows are added or removed at the end of the table, of its head and of the bias.

        Coordinates (and biases) of new rows are the mean of the old ones, or normal as in a fresh table when
        ``mean_resizing`` is false. Peak extra memory: the new coordinates.
        """
        embedding, head = self.get_input_embeddings(), self.get_output_embeddings()
        rows = embedding.num_embeddings if new_num_tokens is None else new_num_tokens
        if pad_to_multiple_of is not None:
            rows = -(-rows // pad_to_multiple_of) * pad_to_multiple_of
        if rows == embedding.num_embeddings:
            return embedding
        owners = [embedding] if head is None else [embedding, head]
        per_row = {
            id(p): p for owner in owners for p in (owner.coordinates, getattr(owner, "bias", None)) if p is not None
        }
        resized = {key: _resized(p, rows, mean_resizing) for key, p in per_row.items()}
        for module in self.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if id(parameter) in resized:
                    setattr(module, name, resized[id(parameter)])
        if getattr(self, "final_logits_bias", None) is not None:
            self._resize_final_logits_bias(rows)
        embedding.num_embeddings = rows
        self.config.get_text_config().vocab_size = self.vocab_size = rows
        return embedding


def _resized(parameter: nn.Parameter, rows: int, mean: bool) -> nn.Parameter:
    kept = parameter.detach()[:rows]
    added = parameter.new_empty(rows - len(kept), *parameter.shape[1:])
    if mean or parameter.dim() == 1:
        added[:] = kept.mean(0)
    else:
        nn.init.normal_(added, std=parameter.shape[1] ** -0.5)
    return nn.Parameter(torch.cat([kept, added]), requires_grad=parameter.requires_grad)


def _part(model: nn.Module, head: FactorizedHead) -> None:
    """Give every other module that has the bias of ``head`` one of its own."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if module is not head and parameter is head.bias:
                setattr(module, name, nn.Parameter(torch.zeros_like(parameter)))


def _tied_factors(model: nn.Module, keys: dict[str, str]) -> dict[str, str]:
    """Tied weight names (tied: kept) in which a dense weight of a factorised module became its two factors."""
    modules = dict(model.named_modules(remove_duplicate=False))
    factors = {}
    for tied, kept in keys.items():
        owner, _, name = tied.rpartition(".")
        if name == "weight" and isinstance(modules.get(owner), (FactorizedEmbedding, FactorizedHead)):
            for factor in ("coordinates", "basis"):
                factors[f"{owner}.{factor}"] = f"{kept.removesuffix('.weight')}.{factor}"
        else:
            factors[tied] = kept
    return factors


@contextmanager
def _stand_ins(model: nn.Module):
    """Inside, plain modules on the meta device stand in for factorised ones, whose ``weight`` stock rules reach for."""
    factorized = [
        (children, name, child)
        for children in [module._modules for module in model.modules()]
        for name, child in children.items()
        if isinstance(child, (FactorizedEmbedding, FactorizedHead))
    ]
    for children, name, child in factorized:
        (rows, _), width = child.coordinates.shape, child.basis.shape[1]
        kind, shape = (nn.Linear, (width, rows)) if isinstance(child, FactorizedHead) else (nn.Embedding, (rows, width))
        children[name] = kind(*shape, device="meta")
    try:
        yield
    finally:
        for children, name, child in factorized:
            children[name] = child


@contextmanager
def _without_logits_bias(model: nn.Module):
    """Inside, BART and its kin add zero to what their head returns, not [1, V]; yields their bias, None for others."""
    bias = getattr(model, "final_logits_bias", None)
    if bias is not None:
        model.final_logits_bias = bias.new_zeros(1)
    try:
        yield bias
    finally:
        if bias is not None:
            model.final_logits_bias = bias


def _class_names(mapping: dict) -> set[str]:
    return {name for names in mapping.values() for name in ([names] if isinstance(names, str) else names)}


_ALIGNED = _class_names(modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES) | _class_names(
    modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES
)
_SHIFTED = _class_names(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
_PRETRAINING = _class_names(modeling_auto.MODEL_FOR_PRETRAINING_MAPPING_NAMES)
_NOT_PASSED_ON = ("num_items_in_batch", "shift_labels", "return_dict")
_SENTENCE_LOGITS = {  # BERT's and ALBERT's pretraining sum two losses: labels of the second, and its logits
    "next_sentence_label": "seq_relationship_logits",
    "sentence_order_label": "sop_logits",
}


def language_model_forward(stock: type[nn.Module]):
    """A forward for the language model class ``stock`` that computes the loss without logits; None for other classes.

    The stock forward runs without labels while the head hands its input on; the loss is that of
    ``ofa_fast.ops.factorized_cross_entropy``. It is the stock loss, also divided by ``num_items_in_batch`` when given,
    and with labels shifted by one for causal models. The output's ``logits`` are None then. A model that scales or caps
    what its head returns is found out in its first step and keeps the stock loss, which forms logits.
    """
    parameters = list(inspect.signature(stock.forward).parameters)[1:]
    sentence = next((name for name in _SENTENCE_LOGITS if name in parameters), None)
    paired = sentence is not None and stock.__name__ in _PRETRAINING
    if stock.__name__ not in _ALIGNED | _SHIFTED and not paired:
        return None
    shifted = stock.__name__ not in _ALIGNED and not paired
    if shifted and "loss_function" not in inspect.unwrap(stock.forward).__code__.co_names:
        return None  # a loss of its own, which as in BART's decoder need not shift the labels
    logits_name = "prediction_logits" if paired else "logits"
    needed = ("labels", sentence) if paired else ("labels",)

    @functools.wraps(stock.forward)
    def forward(self, *args, **kwargs):
        kwargs.update(zip(parameters, args, strict=False))
        if not self._loss_from_hidden or any(kwargs.get(name) is None for name in needed):
            return stock.forward(self, **kwargs)
        rest = {name: value for name, value in kwargs.items() if name not in (*needed, *_NOT_PASSED_ON)}
        labels, num_items, return_dict = kwargs["labels"], kwargs.get("num_items_in_batch"), kwargs.get("return_dict")
        decoder_inputs = ("decoder_input_ids", "decoder_inputs_embeds")
        if self.config.is_encoder_decoder and all(kwargs.get(name) is None for name in decoder_inputs):
            rest["decoder_input_ids"] = self.prepare_decoder_input_ids_from_labels(labels)
        if shifted:
            labels = kwargs.get("shift_labels")
            labels = nn.functional.pad(kwargs["labels"][..., 1:], (0, 1), value=-100) if labels is None else labels
        with _without_logits_bias(self) as added:
            bias, reduction = None if added is None else added.flatten(), "mean" if num_items is None else "sum"
            embedding, head = self.get_input_embeddings(), self.get_output_embeddings()
            # In whatever else stands in its place, the lookup does not know of the head.
            shared = tied_gradient(embedding, head) if isinstance(embedding, FactorizedEmbedding) else nullcontext()
            with shared, head.taking_loss(labels, bias, reduction) as taken:
                outputs = stock.forward(self, **rest, return_dict=True)
        if len(taken) != 1 or not self._hands_on(taken[0][0], outputs[logits_name], added):
            logger.warning_once(f"{stock.__name__} does more to its logits than its head: the loss is taken from them")
            self._loss_from_hidden = False
            return stock.forward(self, **kwargs)
        loss = taken[0][1]
        if num_items is not None:
            # A number stays one: it would be copied to the device, and the host wait for the copy.
            loss = loss / (num_items.to(loss.device) if isinstance(num_items, torch.Tensor) else num_items)
        if paired:
            scores = outputs[_SENTENCE_LOGITS[sentence]]
            loss = loss + nn.functional.cross_entropy(scores, kwargs[sentence].flatten().to(scores.device))
        outputs = type(outputs)(loss=loss, **{name: value for name, value in outputs.items() if name != logits_name})
        return outputs if (self.config.return_dict if return_dict is None else return_dict) else outputs.to_tuple()

    return forward
