"""WARP (Hambardzumyan et al. 2021, arXiv 2101.00121, section 3): a prompt and output vectors.

Trains:  prompt/embedding [P, D] and prompt/verbalizer [C, D], a vector a class.   Serves: the same.

The paper classifies at a masked token; T5 at the decoder's first position. There the first token of
label c has the logit (decoder output) . v_c, and every other id none. What follows the first token
is known, so at later positions the one id that continues the label (the end of the sequence after
its last token) has all the probability: those positions cost no loss and give no gradient, and
decoding yields a label whatever the backbone would write.

The vectors start as the rows of the output layer for the labels' first tokens, so that the classes'
logits are the backbone's. Every target must be one of the labels, without a leading sentinel, and
label smoothing off: what is impossible would cost 1e10 (`check_task`).

Cost: prompt tuning's with 6 B U C D FLOPs a step (forward and backward) in place of the output
layer's 4 B U D V.
"""

from collections.abc import Callable, Iterable, Sequence

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct
from jax import Array

from prompt_tuning.errors import UserError
from prompt_tuning.interfaces import EOS_ID, PromptContext, PromptValues
from prompt_tuning.prompts.initializers import Sources
from prompt_tuning.prompts.tables import VirtualTokens

# Of an id that cannot come: finite, so that sums over a beam stay numbers.
NEVER = -1e10

LabelIds = tuple[tuple[int, ...], ...]


@struct.dataclass
class Verbalizer:
  """An output hook: only labels can be written, and their vectors say which.

  Attributes:
    vectors: `[C, D]`.
    label_ids: a label's ids, without the end of the sequence.
  """

  vectors: Array
  label_ids: LabelIds = struct.field(pytree_node=False)

  def __call__(self, x: Array, tokens: Array, positions: Array,
               project: Callable[[Array], Array]) -> Array:
    # Of no positions: costs nothing, says V, and lets Flax make the output layer's parameters.
    vocab_size = project(x[:, :0]).shape[-1]
    scores = jnp.einsum("bud,cd->buc", x.astype(jnp.float32), self.vectors)
    first = np.array([ids[0] for ids in self.label_ids])
    chosen = jnp.full((*x.shape[:2], vocab_size), NEVER).at[..., first].set(scores)
    is_next = self._next(tokens, positions)[..., None] == jnp.arange(vocab_size)[None, None]
    forced = jnp.where(is_next, 0.0, NEVER)
    return jnp.where((positions == 0)[None, :, None], chosen, forced)

  def _next(self, tokens: Array, positions: Array) -> Array:
    """The id that continues a label behind `tokens [B, U]`; what continues none ends."""
    steps = [(*step, token) for step, token in continuations(self.label_ids).items()]
    position, before, after = np.array(steps, np.int32).T[:, None, None]
    here = (positions[None, :, None] == position) & (tokens[..., None] == before)
    return jnp.where(here.any(axis=-1), jnp.sum(here * after, axis=-1), EOS_ID)


class WarpPrompt(VirtualTokens):
  """A table of virtual tokens and a verbaliser.

  Attributes:
    labels: the C strings that the task's targets take (CLASS_LABELS).
    label_ids: their ids, which `with_vocabulary` fills in.
  """

  labels: tuple[str, ...] = ()
  label_ids: LabelIds = ()

  def __post_init__(self):
    labels = self.labels
    if (isinstance(labels, str) or len(labels) < 2 or len(set(labels)) < len(labels)
        or not all(isinstance(label, str) and label for label in labels)):
      raise UserError("WarpPrompt.labels is not a list of labels", found=repr(labels),
                      wanted="two or more strings, one a class",
                      fix="--gin.CLASS_LABELS=\"['yes', 'no']\"")
    # gin gives lists; a module's fields must be hashable.
    object.__setattr__(self, "labels", tuple(labels))
    object.__setattr__(self, "label_ids", tuple(tuple(map(int, ids)) for ids in self.label_ids))
    if self.label_ids:
      _check(self.labels, self.label_ids)
    super().__post_init__()

  @nn.compact
  def __call__(self, context: PromptContext, enable_dropout: bool = False) -> PromptValues:
    if not self.label_ids:
      raise UserError("WARP does not know the ids of its labels", found="no vocabulary",
                      wanted=f"one that has ids for {', '.join(self.labels)}",
                      fix="make the model with run_config.ModelConfig, or give label_ids")
    vectors = self.leaf("verbalizer", ("classes", "prompt_embed"),
                        (len(self.labels), self.config.emb_dim))
    return PromptValues(embeds=self.table(), output=Verbalizer(vectors, self.label_ids))

  def with_vocabulary(self, encode: Callable[[str], Sequence[int]]) -> "WarpPrompt":
    return self.clone(label_ids=tuple(tuple(encode(label)) for label in self.labels))

  def check_task(self, task: str, targets: Iterable[tuple[str, Sequence[int]]], *,
                 leading_sentinel: bool = False, label_smoothing: float = 0.0) -> None:
    if leading_sentinel:
      raise UserError("WARP cannot write a leading sentinel", found="LEADING_SENTINEL = True",
                      wanted="targets that are labels alone",
                      fix="leave LEADING_SENTINEL out, or use prompts/soft.gin")
    if label_smoothing > 0:
      raise UserError("WARP cannot be trained with label smoothing",
                      found=f"label_smoothing = {label_smoothing}",
                      wanted="0.0: ids that are in no label have no probability to give",
                      fix="leave label_smoothing out, or use prompts/soft.gin")
    for text, ids in targets:
      if tuple(ids) not in self.label_ids:
        raise UserError("WARP cannot write all of the targets", found=f"{text!r}, of {task}",
                        wanted="one of " + ", ".join(map(repr, self.labels)),
                        fix="give CLASS_LABELS all labels of the task, as "
                        "`prompt-tuning tasks` shows them")

  def initial_params(self, key: Array, params: dict, sources: Sources) -> dict:
    """A table from the initialiser, and the output layer's rows; `params` is replaced."""
    output = sources.embedding if sources.output is None else sources.output
    rows = jnp.take(jnp.asarray(output), np.array([ids[0] for ids in self.label_ids]), axis=0)
    # T5 1.0 scales what its token table gives as logits.
    scale = self.config.emb_dim**-0.5 if self.config.logits_via_embedding else 1.0
    return {"embedding": self.initializer(key, self.length, sources),
            "verbalizer": scale * rows.astype(jnp.float32)}


def continuations(label_ids: LabelIds) -> dict[tuple[int, int], int]:
  """(position, the id ahead of it) -> the id there, from position 1 on."""
  found: dict[tuple[int, int], int] = {}
  for ids in label_ids:
    whole = (*ids, EOS_ID)
    found |= {(u, whole[u - 1]): whole[u] for u in range(1, len(whole))}
  return found


def _check(labels: tuple[str, ...], label_ids: LabelIds) -> None:
  """Refuses labels that the id of one position cannot tell apart."""
  if len(labels) != len(label_ids) or not all(label_ids):
    raise UserError("WarpPrompt.label_ids are not those of the labels", found=label_ids,
                    wanted=f"one or more ids for each of {', '.join(labels)}",
                    fix="leave them to run_config.ModelConfig, or choose other labels")
  owner: dict[int, str] = {}
  for label, ids in zip(labels, label_ids, strict=True):
    if ids[0] in owner:
      raise UserError("Two labels begin with the same token",
                      found=f"{owner[ids[0]]!r} and {label!r}: id {ids[0]}",
                      wanted="labels whose first tokens differ, since WARP chooses by them",
                      fix="map the classes to other words in the task, and in CLASS_LABELS")
    owner[ids[0]] = label
  together = continuations(label_ids)
  for label, ids in zip(labels, label_ids, strict=True):
    for step, token in continuations((ids,)).items():
      if together[step] != token:
        raise UserError("A label does not follow from its last token",
                        found=f"{label!r}: behind id {step[1]} at position {step[0]} another "
                        "label goes on differently",
                        wanted="labels that share no token at one position, or share the rest",
                        fix="map the classes to other words in the task, and in CLASS_LABELS")
