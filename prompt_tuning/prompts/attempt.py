"""ATTEMPT (Asai et al. 2022, arXiv 2205.11961, section 2.2): attention over source prompts.

M prompts of other tasks [P, D] and a new one, P_0, are mixed for each input:

  x = max over the input's tokens of their embeddings                           [B, D]
  h = layer norm(up SiLU(down x))                                               [B, D]
  a = softmax over m = 0 ... M of h . (max over P of P_m) / temperature         [B, M + 1]
  prompt of the row = P_0 + sum of a_m P_m                                      [B, P, D]

Padding and virtual tokens take no part in the first maximum (the paper's code pools padding too).

Trains:  prompt/embedding [P, D] (P_0), prompt/down_kernel [D, h], prompt/up_kernel [h, D] and the
         layer norm's prompt/norm_scale and norm_offset [D].
Keeps:   prompt/constant_sources [M, P, D], frozen: it has no gradient and no optimizer state.
Serves:  all of it, since every input has its own prompt.

Cost: prompt tuning's and, a row, 10 D h for the small network and 6 (M + 1) P D for the mixture
(FLOPs, forward and backward).
"""


import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from prompt_tuning.checkpoints import run_prompts
from prompt_tuning.errors import UserError
from prompt_tuning.interfaces import PromptContext, PromptValues
from prompt_tuning.prompts.initializers import Sources, read_prompt
from prompt_tuning.prompts.tables import VirtualTokens, layer_norm, uniform


class AttemptPrompt(VirtualTokens):
  """A mixture of source prompts and a new one, which each input weighs.

  Attributes:
    initializer: of the new prompt.
    sources: M prompt files, or MODEL_DIRs of runs, of P rows each.
    hidden: h of the small network; the paper's code has 100.
    temperature: of the softmax; None: D e, the paper's.
  """

  sources: tuple[str, ...] = ()
  hidden: int = 100
  temperature: float | None = None

  reads_input = True

  def __post_init__(self):
    if (isinstance(self.sources, str) or not self.sources
        or not all(isinstance(source, str) and source for source in self.sources)):
      raise UserError("AttemptPrompt.sources is not a list of prompts", found=repr(self.sources),
                      wanted="one or more prompt files or MODEL_DIRs",
                      fix="--gin.SOURCE_PROMPTS=\"['runs/mnli', 'runs/squad/prompt.npy']\"")
    # gin gives lists; a module's fields must be hashable.
    object.__setattr__(self, "sources", tuple(self.sources))
    self.check_count("hidden", "ATTENTION_HIDDEN")
    if self.temperature is not None and not self.temperature > 0:
      raise UserError("AttemptPrompt.temperature is not one", found=repr(self.temperature),
                      wanted="a number above 0, or None for D e", fix="set ATTENTION_TEMPERATURE")
    super().__post_init__()

  @nn.compact
  def __call__(self, context: PromptContext, enable_dropout: bool = False) -> PromptValues:
    width, hidden = self.config.emb_dim, self.hidden
    target = self.table()
    # Other axis names than a prompt's own: no gradient reaches these.
    sources = self.leaf("constant_sources", ("source", "source_prompt", "prompt_embed"),
                        (len(self.sources), self.length, width))
    down = self.leaf("down_kernel", ("embed", "hidden"), (width, hidden), uniform(width))
    up = self.leaf("up_kernel", ("hidden", "embed"), (hidden, width), uniform(hidden))
    scale = self.leaf("norm_scale", ("embed",), (width,), nn.initializers.ones)
    offset = self.leaf("norm_offset", ("embed",), (width,))

    prompts = jnp.concatenate([target[None], jax.lax.stop_gradient(sources)])
    # Both are there: `reads_input` asks for them.
    embedded, tokens = jnp.asarray(context.embedded, jnp.float32), jnp.asarray(context.tokens)
    pooled = pool(embedded, tokens)
    query = layer_norm(jax.nn.silu(pooled @ down) @ up, scale, offset)
    scores = query @ jnp.max(prompts, axis=1).T / (self.temperature or width * np.e)
    mixed = jnp.einsum("bm,mpd->bpd", jax.nn.softmax(scores, axis=-1), prompts)
    return PromptValues(embeds=target[None] + mixed)

  def initial_params(self, key: Array, params: dict, sources: Sources) -> dict:
    read = [_read(path, self.length, sources) for path in self.sources]
    return {**params, "embedding": self.initializer(key, self.length, sources),
            "constant_sources": jnp.stack(read)}

  def check_start(self, key: Array, sources: Sources) -> None:
    super().check_start(key, sources)
    for path in self.sources:
      _read(path, self.length, sources)


def pool(embedded: Array, tokens: Array) -> Array:
  """`[B, S, D]` -> `[B, D]`: the maximum over real tokens; zeros where a row has none."""
  is_real = (tokens > 0)[..., None]
  highest = jnp.max(jnp.where(is_real, embedded, -jnp.inf), axis=1)
  return jnp.where(is_real.any(axis=1), highest, 0.0)


def _read(path: str, length: int, sources: Sources) -> Array:
  """A source prompt `[P, D]`, from a file or a run."""
  if run_prompts.is_run(path):
    path = str(run_prompts.table_of(path, "SOURCE_PROMPTS"))
  return jnp.asarray(read_prompt(path, length, sources.embedding.shape[1],
                                 setting="SOURCE_PROMPTS"))
