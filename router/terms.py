"""What an exit or relay is, and what a class of mail asks of its way: the policies of routes. Pure.

    rule           an exit is outside if                    a relay is outside if
    require_tags   it lacks one of them                     it lacks one of them
    forbid_tags    it has one of them                       it has one of them
    tls_min        it promises less                         never: between relays certificates are checked
    transit        never                                    the route has transit = false
    size           it takes no message of that size         never

A domain's own exchangers have the tags of the relay that delivers to them: that is where the mail leaves the cluster.
They promise no encryption, but who delivers to them holds the sessions to the `tls_min` of its own route: this relay to
what it asks, another one to the same if its routes are the same (`routes_digest`), else to nobody knows what.
Policies are applied to the topology before ranks are computed, not to single messages.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from gossip.linkstate import TlsLevel


@dataclass(frozen=True, slots=True)
class Terms:
    """What an exit is and promises."""

    tags: tuple[str, ...] = ()
    """Sorted."""
    tls: TlsLevel = TlsLevel.NONE
    size_bytes_max: int = 0
    """0 = any size."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a policy leaves something out."""

    rule: str
    """As the operator set it: `require_tags eu`."""
    found: str
    """`it lacks eu`"""

    def __str__(self) -> str:
        return f"{self.rule}: {self.found}"


@dataclass(frozen=True, slots=True)
class Policy:
    """What a class asks of every exit and relay on its way."""

    require_tags: tuple[str, ...] = ()
    forbid_tags: tuple[str, ...] = ()
    tls_min: TlsLevel = TlsLevel.NONE
    transit: bool = True
    """False: own exits only, never through other relays."""
    above_bytes: int = 0
    """Messages of the class are larger than this; 0 = of any size that all exits take."""

    def refuse_exit(self, terms: Terms) -> Refusal | None:
        """Why mail of the class may not leave by an exit; None if it may."""
        refusal = self._refuse_tags(terms.tags)
        if refusal is not None:
            return refusal
        if terms.tls < self.tls_min:
            return Refusal(f"tls_min {self.tls_min.name.lower()}", f"it promises {terms.tls.name.lower()}")
        if self.above_bytes and 0 < terms.size_bytes_max <= self.above_bytes:
            return Refusal(f"size above {self.above_bytes} bytes", f"it takes at most {terms.size_bytes_max}")
        return None

    def refuse_relay(self, tags: Collection[str]) -> Refusal | None:
        """Why mail of the class may not be handed to another relay; None if it may."""
        if not self.transit:
            return Refusal("transit no", "it is another relay")
        return self._refuse_tags(tags)

    @property
    def judges_relays(self) -> bool:
        """It may leave out a relay."""
        return bool(self.require_tags or self.forbid_tags or not self.transit)

    def _refuse_tags(self, tags: Collection[str]) -> Refusal | None:
        lacking = [tag for tag in self.require_tags if tag not in tags]
        if lacking:
            return Refusal(f"require_tags {' '.join(self.require_tags)}", f"it lacks {' '.join(lacking)}")
        found = [tag for tag in self.forbid_tags if tag in tags]
        if found:
            return Refusal(f"forbid_tags {' '.join(self.forbid_tags)}", f"it has {' '.join(found)}")
        return None


KEEPS_ANY_FLOOR = TlsLevel.VERIFIED
"""Of deliveries to a domain's own exchangers by a relay that has the same routes: none asks for more."""
ANY_WAY = Policy()
"""Asks for nothing."""
NO_TERMS = Terms()
"""Promises nothing, takes everything."""
