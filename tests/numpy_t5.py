"""T5 written from its definition in plain numpy: slow, one row and one head at a time, in float64.

The second implementation that the backbone and the hooks are compared with. Leaves are the
unscanned layout (`encoder/layers_0/...`). Raffel et al. 2020 (arXiv 1910.10683), section 2.1, and
the relative position buckets of its released code.
"""

import math

import numpy as np

EPSILON = 1e-6


def bucket(relative: int, bidirectional: bool, num_buckets: int, max_distance: int) -> int:
  """The bucket of one offset (key position minus query position).

  Half of the buckets of a direction hold one distance each; the others are spaced evenly in the
  logarithm of the distance up to `max_distance`, and the last one takes all that is further.
  """
  first = 0
  distance = -relative
  if bidirectional:
    num_buckets //= 2
    first = num_buckets if relative > 0 else 0
    distance = abs(relative)
  elif distance < 0:
    distance = 0
  exact = num_buckets // 2
  if distance < exact:
    return first + distance
  # The largest step whose lower edge, exact * (max_distance / exact)^(step / steps), is in reach.
  steps = num_buckets - exact
  step = max(k for k in range(steps)
             if distance * (1 + 1e-12) >= exact * math.exp(math.log(max_distance / exact)
                                                          * k / steps))
  return first + exact + step


def attention(queries, keys, values, allowed, bias):
  """One head: `[Q, K]`, `[S, K]`, `[S, K]`, bool `[Q, S]`, `[Q, S]` -> `[Q, K]`."""
  output = np.zeros((len(queries), values.shape[1]))
  for q, query in enumerate(queries):
    scores = np.array([query @ keys[s] + bias[q, s] if allowed[q, s] else -np.inf
                       for s in range(len(keys))])
    weights = np.exp(scores - scores.max())
    output[q] = (weights / weights.sum()) @ values
  return output


class NumpyT5:
  """Teacher-forced forward pass of one row.

  Attributes:
    flat: `{path: array}` of the unscanned backbone.
    config: the `T5Config`.
    extra: (stack, "self" or "cross") -> keys and values `[L, 2, P, H, K]` ahead of the others.
  """

  def __init__(self, flat, config, extra=None):
    self.flat = {path: np.asarray(leaf, np.float64) for path, leaf in flat.items()}
    self.config, self.extra = config, extra or {}

  def norm(self, path, x):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + EPSILON) * self.flat[path + "/scale"]

  def bias(self, stack, length):
    """`[H, length, length]`."""
    config, table = self.config, self.flat[f"{stack}/relpos_bias/rel_embedding"]
    buckets = [[bucket(s - q, stack == "encoder", config.relative_attention_num_buckets,
                       config.relative_attention_max_distance) for s in range(length)]
               for q in range(length)]
    return table[:, np.array(buckets)]

  def attend(self, path, x, source, allowed, bias, extra):
    heads, size = self.config.num_heads, self.config.head_dim
    into = {name: self.flat[f"{path}/{name}/kernel"] for name in ("query", "key", "value")}
    mixed = []
    for h in range(heads):
      part = slice(h * size, (h + 1) * size)
      queries, keys, values = (inputs @ into[name][:, part] for name, inputs in
                               (("query", x), ("key", source), ("value", source)))
      here, see = bias[h], allowed
      if extra is not None:
        length = extra.shape[1]
        keys = np.concatenate([extra[0][:, h], keys])
        values = np.concatenate([extra[1][:, h], values])
        here = np.concatenate([np.zeros((len(x), length)), here], axis=1)
        see = np.concatenate([np.ones((len(x), length), bool), see], axis=1)
      mixed.append(attention(queries, keys, values, see, here))
    return np.concatenate(mixed, axis=1) @ self.flat[path + "/out/kernel"]

  def mlp(self, path, x):
    y = x @ self.flat[path + "/wi_0/kernel"]
    gelu = 0.5 * y * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
    return gelu * (x @ self.flat[path + "/wi_1/kernel"]) @ self.flat[path + "/wo/kernel"]

  def encode(self, x, real):
    """Embeddings `[S, D]` and which positions are no padding -> `[S, D]`."""
    allowed = np.tile(real, (len(x), 1))
    bias = self.bias("encoder", len(x))
    for i in range(self.config.num_encoder_layers):
      path = f"encoder/layers_{i}"
      y = self.norm(path + "/pre_attention_layer_norm", x)
      x = x + self.attend(path + "/attention", y, y, allowed, bias,
                          self.ahead("encoder", "self", i))
      x = x + self.mlp(path + "/mlp", self.norm(path + "/pre_mlp_layer_norm", x))
    return self.norm("encoder/encoder_norm", x)

  def decode(self, tokens, encoded, real):
    """Ids `[U]` -> logits `[U, V]`."""
    x = self.flat["token_embedder/embedding"][tokens]
    length = len(tokens)
    causal = np.tril(np.ones((length, length), bool))
    bias = self.bias("decoder", length)
    see = np.tile(real, (length, 1))
    none = np.zeros((self.config.num_heads, length, len(encoded)))
    for i in range(self.config.num_decoder_layers):
      path = f"decoder/layers_{i}"
      y = self.norm(path + "/pre_self_attention_layer_norm", x)
      x = x + self.attend(path + "/self_attention", y, y, causal, bias,
                          self.ahead("decoder", "self", i))
      y = self.norm(path + "/pre_cross_attention_layer_norm", x)
      x = x + self.attend(path + "/encoder_decoder_attention", y, encoded, see, none,
                          self.ahead("decoder", "cross", i))
      x = x + self.mlp(path + "/mlp", self.norm(path + "/pre_mlp_layer_norm", x))
    return self.norm("decoder/decoder_norm", x) @ self.flat["decoder/logits_dense/kernel"]

  def ahead(self, stack, kind, layer):
    values = self.extra.get((stack, kind))
    return None if values is None else np.asarray(values[layer], np.float64)
