"""The step of AutoPrompt: one token of a trigger is exchanged for the best of k candidates.

Shin et al. 2020 (arXiv 2010.15980), section 2.2, on T5. With e_w the embedding of token w, x the
trigger's embeddings and L the mean loss over rows, exchanging the token at position j for w changes

  L  by  (e_w - x_j) . dL/dx_j   to first order,

so the k tokens with the smallest e_w . dL/dx_j are tried, each exactly, on a fixed set of rows. The
exchange is made only if it lowers the loss there, so that loss never rises.

  trigger        [P] int32, rows -1-p of the encoder's input
  answers        [C, K, U] int32: K texts for each of C classes, padded with 0; a class's
                 probability is the sum of those of its texts
  tokens         [B, S] int32, virtual ids included          classes  [B] int32

Every array keeps its shape throughout a search, so `step` is compiled once (`traces` counts it).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from prompt_tuning import quantization
from prompt_tuning.prompted import PromptedT5
from prompt_tuning.scoring import label_scores


def class_scores(model: PromptedT5, params: Any, tokens: Array, answers: Array,
                 prefix: tuple[int, ...] = ()) -> Array:
  """`[B, C]` log-probabilities, not normalised over the classes.

  Args:
    answers: `[C, K, U]`; a text that is all padding counts nothing.
    prefix: ids that the decoder is given ahead of every answer.
  """
  classes, texts, width = answers.shape
  if width == 1:
    # One decoder pass gives the probabilities of all tokens.
    shifted = jnp.broadcast_to(jnp.array([0, *prefix], jnp.int32),
                               (tokens.shape[0], 1 + len(prefix)))
    logits = model.apply({"params": params}, tokens, shifted, enable_dropout=False)[:, -1]
    scores = jnp.take(jax.nn.log_softmax(logits, axis=-1), answers[..., 0].reshape(-1), axis=1)
  else:
    ahead = jnp.broadcast_to(jnp.array(prefix, jnp.int32), (classes * texts, len(prefix)))
    flat = jnp.concatenate([ahead, answers.reshape(classes * texts, width)], axis=1)
    scores = label_scores(model, params, tokens, flat, given=len(prefix))
  scores = scores.reshape(-1, classes, texts)
  scores = jnp.where((answers[..., 0] != 0)[None], scores, -jnp.inf)
  return jax.nn.logsumexp(scores, axis=-1)


class Search:
  """The compiled functions of one search.

  Attributes:
    traces: how often each function was traced, by name.
  """

  def __init__(self, model: PromptedT5, backbone: Any, answers: np.ndarray, *,
               allowed: np.ndarray, candidates: int, prefix: tuple[int, ...] = (),
               over_labels: bool = False, rows_at_once: int = 64):
    """Args:
      model: with a `SoftPrompt` of P rows.
      allowed: `[V]` bool, tokens a trigger may hold.
      candidates: k.
      over_labels: the loss is of the class among the classes; else the paper's, of its texts among
        all that the decoder could say.
      rows_at_once: of one forward pass.
    """
    self.traces: dict[str, int] = {}
    self._backbone = backbone
    self._table = quantization.whole(backbone["token_embedder"]["embedding"])
    self._answers, self._allowed = jnp.asarray(answers), jnp.asarray(allowed)
    self._rows_at_once = rows_at_once

    def row_losses(backbone, embedding, tokens, classes):
      params = {"backbone": backbone, "prompt": {"embedding": embedding}}
      scores = class_scores(model, params, tokens, self._answers, prefix)
      own = jnp.take_along_axis(scores, classes[:, None], axis=1)[:, 0]
      losses = -own + (jax.nn.logsumexp(scores, axis=1) if over_labels else 0.0)
      return losses, scores

    def mean_loss(embedding, backbone, tokens, classes):
      return row_losses(backbone, embedding, tokens, classes)[0].mean()

    def evaluate(backbone, embedding, tokens, classes):
      self.traces["evaluate"] = self.traces.get("evaluate", 0) + 1
      return row_losses(backbone, embedding, tokens, classes)

    def gradient(backbone, table, trigger, tokens, classes):
      self.traces["gradient"] = self.traces.get("gradient", 0) + 1
      return jax.grad(mean_loss)(embed(table, trigger), backbone, tokens, classes)

    def step(backbone, table, trigger, position, gradient, tokens, classes):
      self.traces["step"] = self.traces.get("step", 0) + 1
      change = first_order(table, trigger, position, gradient)
      _, tried = jax.lax.top_k(jnp.where(self._allowed, -change, -jnp.inf), candidates)
      pieces = (tokens.reshape(-1, rows_at_once, tokens.shape[1]),
                classes.reshape(-1, rows_at_once))

      def exact(token):
        embedding = embed(table, trigger.at[position].set(token))
        losses = jax.lax.map(lambda rows: mean_loss(embedding, backbone, *rows), pieces)
        return losses.mean()

      return tried, jax.lax.map(exact, tried), change[tried]

    self._evaluate, self._gradient, self._step = (
      jax.jit(evaluate), jax.jit(gradient), jax.jit(step))

  def embedding(self, trigger: np.ndarray) -> np.ndarray:
    """`[P, D]` float32: the prompt that is these tokens."""
    return np.asarray(embed(self._table, jnp.asarray(trigger)))

  def gradient(self, trigger: np.ndarray, tokens: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """`[P, D]`: of the mean loss over rows, with respect to the trigger's embeddings."""
    return self._gradient(self._backbone, self._table, trigger, tokens, classes)

  def swaps(self, trigger: np.ndarray, position: int, gradient: np.ndarray, tokens: np.ndarray,
            classes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`[k]` candidates for a position, their exact losses, and the changes the gradient says."""
    found = self._step(self._backbone, self._table, trigger, np.int32(position), gradient, tokens,
                       classes)
    tried, losses, change = map(np.asarray, found)
    return tried, losses, change

  def scores(self, embedding: np.ndarray, tokens: np.ndarray,
             classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`[n]` losses and `[n, C]` class scores of any prompt `[P, D]`, discrete or soft."""
    size, n = self._rows_at_once, len(tokens)
    fill = -n % size
    tokens = np.pad(tokens, ((0, fill), (0, 0)), mode="edge")
    classes = np.pad(classes, (0, fill), mode="edge")
    found = [self._evaluate(self._backbone, jnp.asarray(embedding, jnp.float32),
                            tokens[i:i + size], classes[i:i + size])
             for i in range(0, len(tokens), size)]
    return (np.concatenate([np.asarray(losses) for losses, _ in found])[:n],
            np.concatenate([np.asarray(scores) for _, scores in found])[:n])


def embed(table: Array, trigger: Array) -> Array:
  return jnp.take(table, trigger, axis=0).astype(jnp.float32)


def first_order(table: Array, trigger: Array, position: Array, gradient: Array) -> Array:
  """`[V]`: what exchanging the token at `position` for each token changes, to first order."""
  row = gradient[position]
  table = table.astype(jnp.float32)
  return table @ row - table[trigger[position]] @ row


def project(prompt: np.ndarray, table: np.ndarray, allowed: np.ndarray) -> np.ndarray:
  """`[P, D]` -> `[P]`: of the allowed tokens the one with the largest cosine with each vector."""
  def unit(rows: np.ndarray) -> np.ndarray:
    rows = np.asarray(rows, np.float64)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
  cosines = np.where(allowed[None], unit(prompt) @ unit(table).T, -np.inf)
  return cosines.argmax(axis=1).astype(np.int32)


def answer_states(model: PromptedT5, params: Any, tokens: Array,
                  prefix: tuple[int, ...] = ()) -> Array:
  """`[B, D]`: what the output layer reads where the answer starts."""
  shifted = jnp.broadcast_to(jnp.array([0, *prefix], jnp.int32),
                             (tokens.shape[0], 1 + len(prefix)))

  def read(module: PromptedT5) -> Array:
    values = module.prompt_values(tokens)
    encoded = module.encode(tokens)
    x = module.backbone.decoder(module.backbone.embed(shifted), encoded, tokens, values.decoder,
                                None, None, False)
    return x[:, -1]

  return model.apply({"params": params}, method=read)
