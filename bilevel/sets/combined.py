"""Sets by inequalities that may tie y to x, and several sets at once."""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx

from bilevel.sets.base import AbstractSet, Constraints, Traits, as_pytree, ravel
from bilevel.sets.linear import onto_rows
from bilevel.sets.simple import Free


class Coupled(AbstractSet):
    """Any smooth constraints that tie the levels: `h(x, y) <= 0` in every component.

    As a lower set it is `Y(x) = {y: h(x, y) <= 0}`; as an upper set it asks for `h(x, y*(x)) <= 0`.
    Either way points are given as `violation(y, x)`. It has no projection.

    Args:
        h: `h(x, y)` returns any pytree of arrays; `None` where there are equations alone.
        equalities: `e(x, y)` returns any pytree of arrays, for `e(x, y) = 0` besides.

    Raises:
        TypeError: h or equalities is not callable.
        ValueError: both are `None`.
    """

    h: Callable | None = eqx.field(converter=lambda h: h if h is None else as_pytree(h))
    equalities: Callable | None = eqx.field(
        converter=lambda e: e if e is None else as_pytree(e), default=None, kw_only=True
    )

    def traits(self):
        return Traits(
            projectable=False,
            linear=False,
            moves=True,
            inequalities=self.h is not None,
            equalities=self.equalities is not None,
        )

    def __check_init__(self):
        for name, fn in (("h", self.h), ("equalities", self.equalities)):
            if fn is not None and not callable(fn):
                raise TypeError(
                    f"Coupled: {name} is {type(fn).__name__}; a function {name}(x, y) is needed."
                )
        if self.h is None and self.equalities is None:
            raise ValueError("Coupled: give h, or equalities, or both.")

    def project(self, z, x=None):
        raise NotImplementedError(
            "Coupled has no projection, because h(x, y) <= 0 can be any set. Use a method that "
            "handles coupled constraints by penalties or multipliers, or write constraints that "
            "are linear in y as a Polyhedron (its entries may be functions of x)."
        )

    def constraints(self, z, x=None):
        if x is None:
            raise ValueError("Coupled: h is a function of x and y; pass x after y.")
        return Constraints(
            () if self.h is None else self.h(x, z),
            () if self.equalities is None else self.equalities(x, z),
        )


class Intersection(AbstractSet):
    """Points that lie in every one of several sets; what a tuple of sets becomes.

    Projects when at most one member is a true constraint, and when all are linear (by the same
    solve as `Polyhedron`).

    Raises:
        TypeError: a member is not a set.
    """

    sets: tuple[AbstractSet, ...] = eqx.field(converter=tuple)

    def __check_init__(self):
        for member in self.sets:
            if not isinstance(member, AbstractSet):
                raise TypeError(
                    f"Intersection: {member!r} is not a set; give a tuple of bilevel.sets."
                )

    @property
    def simple(self) -> bool:
        members = proper_members(self)
        return not members or (len(members) == 1 and members[0].simple)

    def traits(self):
        linear = all(member.linear for member in self.sets)
        members = proper_members(self)
        alone = len(members) == 1 and members[0].projectable
        every = [member.traits() for member in self.sets]
        return Traits(
            alone or linear,
            linear,
            moves=any(traits.moves for traits in every),
            inequalities=any(traits.inequalities for traits in every),
            equalities=any(traits.equalities for traits in every),
        )

    def project(self, z, x=None):
        members = proper_members(self)
        if not members:
            return z
        if len(members) == 1:
            return members[0].project(z, x)
        if not self.linear:
            raise NotImplementedError(
                f"An Intersection of {', '.join(type(s).__name__ for s in self.sets)} has no "
                "projection: only linear sets can be projected onto together. Use a method that "
                "handles constraints by penalties or multipliers."
            )
        vector, unravel = ravel(z)
        return unravel(onto_rows(vector, self.rows(z, x)))

    def constraints(self, z, x=None):
        every = [member.constraints(z, x) for member in self.sets]
        return Constraints(tuple(c.inequalities for c in every), tuple(c.equalities for c in every))


def proper_members(a_set: AbstractSet) -> list[AbstractSet]:
    """The true constraints of a set: members of intersections at any depth, without `Free`."""
    if isinstance(a_set, Intersection):
        return [proper for member in a_set.sets for proper in proper_members(member)]
    return [] if isinstance(a_set, Free) else [a_set]


class Split(NamedTuple):
    """A set as a part that is `simple` to project on, and the rest."""

    simple: AbstractSet
    rest: AbstractSet


def split(a_set: AbstractSet) -> Split:
    """The first simple member of `a_set`, `Free()` without one, and the intersection of the others.

    The rest, `h(x, y) <= 0` and `e(x, y) = 0`, is what multipliers and penalties are for.
    """
    members = proper_members(a_set)
    simple = next((member for member in members if member.simple), Free())
    rest = [member for member in members if member is not simple]
    if not rest:
        return Split(simple, Free())
    return Split(simple, rest[0] if len(rest) == 1 else Intersection(tuple(rest)))
