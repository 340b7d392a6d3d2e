"""A task's rows by epoch; the next epoch can be made while this one is trained on."""

import threading
from collections.abc import Callable

from prompt_tuning.errors import UserError
from prompt_tuning.token_cache import TokenCache

KEPT_EPOCHS = 3


class Source:
  """One task's rows.

  Attributes:
    name: of the task.
    rate: its share of a mixture, relative to the other sources' rates.
    prompt_id: the row of a bank of prompts that its rows use; None: there is no bank.
    is_new_each_epoch: an epoch's cache has to be made.
    rows: how many there are, the same in every epoch.
  """

  def __init__(self, name: str, cache_of: Callable[[int], TokenCache], *, rate: float = 1.0,
               prompt_id: int | None = None, is_new_each_epoch: bool = False):
    """Args: cache_of: the cache of an epoch; called when one is needed that isn't open."""
    self.name, self.rate, self.prompt_id = name, rate, prompt_id
    self.is_new_each_epoch = is_new_each_epoch
    self._cache_of = cache_of
    self._caches = {0: cache_of(0)}
    self._coming: dict[int, _Coming] = {}
    self._lock = threading.Lock()
    self.rows = len(self._caches[0])

  def cache(self, epoch: int) -> TokenCache:
    """The rows of `epoch`; a `UserError` if there are more or fewer than in the first epoch.

    Of epochs that have to be made, only the last KEPT_EPOCHS stay on disk, and the first.
    """
    with self._lock:
      if epoch not in self._caches:
        coming = self._coming.pop(epoch, None)
        cache = self._cache_of(epoch) if coming is None else coming.result()
        if len(cache) != self.rows:
          raise UserError(f"The task {self.name!r} changed its size between epochs",
                          found=f"{len(cache)} rows in epoch {epoch}",
                          wanted=f"{self.rows} rows, as in epoch 0",
                          fix="let the task's randomness change what a row holds, not how many "
                              "rows there are")
        while len(self._caches) >= KEPT_EPOCHS:
          self._forget(min(self._caches))
        self._caches[epoch] = cache
      return self._caches[epoch]

  def _forget(self, epoch: int) -> None:
    # A run of thousands of epochs would fill the disk. The first one is where every start and
    # resume begins; one that was found here may be another run's.
    cache = self._caches.pop(epoch)
    if self.is_new_each_epoch and epoch > 0 and cache.is_new:
      cache.remove()

  def prepare(self, epoch: int) -> None:
    """Starts to make the cache of `epoch`, unless it is there or under way.

    Whatever goes wrong is raised by `cache(epoch)`.
    """
    with self._lock:
      if epoch not in self._caches and epoch not in self._coming:
        self._coming[epoch] = _Coming(self._cache_of, epoch)

  def join(self) -> None:
    """Waits for what is under way."""
    with self._lock:
      for coming in self._coming.values():
        coming.join()
      self._coming.clear()


class _Coming(threading.Thread):
  """The cache of an epoch, as it is being made."""

  def __init__(self, cache_of: Callable[[int], TokenCache], epoch: int):
    super().__init__(name=f"epoch {epoch}", daemon=True)
    self._make, self._epoch = cache_of, epoch
    self._cache: TokenCache | None = None
    self._error: BaseException | None = None
    self.start()

  def run(self) -> None:
    try:
      self._cache = self._make(self._epoch)
    except BaseException as error:  # It belongs to whoever asks for the epoch.
      self._error = error

  def result(self) -> TokenCache:
    self.join()
    if self._error is not None:
      raise self._error
    assert self._cache is not None
    return self._cache
