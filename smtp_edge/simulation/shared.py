"""What the nodes of a large simulation have in common, kept once: a mapping that lays changes over a frozen base."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Layered(MutableMapping[K, V]):
    """Reads fall through to `base`; changes stay here."""

    __slots__ = ("_base", "_count", "_gone", "_own")

    def __init__(self, base: Mapping[K, V]) -> None:
        self._base, self._own = base, dict[K, V]()
        self._gone: set[K] = set()
        self._count = len(base)

    def get(self, key: K, default: V | None = None) -> V | None:  # type: ignore[override]
        """As of a dict; on the path of every record."""
        found = self._own.get(key)
        if found is not None:
            return found
        return default if key in self._gone else self._base.get(key, default)

    def __getitem__(self, key: K) -> V:
        if key in self._own:
            return self._own[key]
        if key in self._gone:
            raise KeyError(key)
        return self._base[key]

    def __setitem__(self, key: K, value: V) -> None:
        if key not in self:
            self._count += 1
        self._own[key] = value
        self._gone.discard(key)

    def __delitem__(self, key: K) -> None:
        if key not in self:
            raise KeyError(key)
        self._count -= 1
        self._own.pop(key, None)
        if key in self._base:
            self._gone.add(key)

    def __contains__(self, key: object) -> bool:
        return key in self._own or (key in self._base and key not in self._gone)

    def __iter__(self) -> Iterator[K]:
        yield from self._own
        for key in self._base:
            if key not in self._own and key not in self._gone:
                yield key

    def __len__(self) -> int:
        return self._count
