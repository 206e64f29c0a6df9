"""How many requests may be under way at the same time, and who is next where there are too many.

The rules: a request has a slot in all of its scopes, or in none. A slot comes back once, however its request ends.
Who waits, waits in turn: each identity's oldest request, one identity after the other, so that who sends a thousand
does not keep out who sends one. How many wait is bounded; for how long is the business of whoever calls.

What is kept is one number for each identity that has requests under way, and no more.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator

from llmproxy.core.limits.decision import Scope, Standing
from llmproxy.core.limits.policy import Policy, Rule


class Slot:
    """The right of one request to be under way.

    :ivar over_shadow: what would have refused it, if it were enforced.
    """

    __slots__ = ("_scopes", "_slots", "over_shadow")

    def __init__(self, slots: Slots, scopes: tuple[Scope, ...], over_shadow: list[Standing]) -> None:
        self._slots: Slots | None = slots
        self._scopes = scopes
        self.over_shadow = over_shadow

    def leave(self) -> None:
        """The request has ended. A second call changes nothing."""
        slots, self._slots = self._slots, None
        if slots is not None:
            slots.left(self._scopes)


class Waiting:
    """A request that waits for its slot."""

    __slots__ = ("_slots", "identity", "ready", "scopes")

    def __init__(self, slots: Slots, scopes: tuple[Scope, ...], identity: Scope, ready: Callable[[Slot], None]) -> None:
        self._slots = slots
        self.scopes = scopes
        self.identity = identity
        self.ready = ready

    def give_up(self) -> bool:
        """It waits no more. Returns whether it still did."""
        return self._slots.forget(self)


class Slots:
    """All slots of one process.

    :param max_waiting: so many requests may wait, of all identities together.
    """

    def __init__(self, policy: Policy, max_waiting: int = 0) -> None:
        self._policy = policy
        self._max_waiting = max_waiting
        self._under_way: dict[Scope, int] = {}
        self._waiting: OrderedDict[Scope, deque[Waiting]] = OrderedDict()
        self._letting_in = False
        self.waiting = 0

    def replace(self, policy: Policy, max_waiting: int) -> None:
        """Go by these limits from now on."""
        self._policy = policy
        self._max_waiting = max_waiting
        self._let_in()

    def enter(self, scopes: tuple[Scope, ...]) -> Slot | Standing:
        """A slot in each scope, or the first rule that refuses one."""
        over_shadow: list[Standing] = []
        for standing in self._over(scopes):
            if not standing.rule.shadow:
                return standing
            over_shadow.append(standing)
        return self._entered(scopes, over_shadow)

    def wait(self, scopes: tuple[Scope, ...], ready: Callable[[Slot], None]) -> Waiting | None:
        """Wait for a slot; ``ready`` is called with it. None: too many wait already.

        Its turn comes by its last scope: the user, if it has one.
        """
        if self.waiting >= self._max_waiting:
            return None
        identity = scopes[-1]
        waiting = Waiting(self, scopes, identity, ready)
        self._waiting.setdefault(identity, deque()).append(waiting)
        self.waiting += 1
        return waiting

    def forget(self, waiting: Waiting) -> bool:
        """See :meth:`Waiting.give_up`."""
        queue = self._waiting.get(waiting.identity)
        if queue is None or waiting not in queue:
            return False
        was_first = queue[0] is waiting
        queue.remove(waiting)
        self.waiting -= 1
        if not queue:
            del self._waiting[waiting.identity]
        elif was_first:
            self._let_in()  # it may have kept one behind it that wants less: of another model, say
        return True

    def left(self, scopes: tuple[Scope, ...]) -> None:
        """See :meth:`Slot.leave`."""
        under_way = self._under_way
        for scope in scopes:
            count = under_way[scope] - 1
            if count:
                under_way[scope] = count
            else:
                del under_way[scope]
        if self.waiting:
            self._let_in()

    def look(self, scopes: tuple[Scope, ...]) -> list[Standing]:
        """How each rule stands for a request."""
        found = ((scope, self._policy.rules(*scope).concurrent) for scope in scopes)
        return [self._standing(scope, rule) for scope, rule in found if rule is not None]

    def in_use(self) -> Iterator[Standing]:
        """How each rule stands for each identity that has requests under way."""
        for scope in list(self._under_way):
            yield from self.look((scope,))

    def _entered(self, scopes: tuple[Scope, ...], over_shadow: list[Standing]) -> Slot:
        under_way = self._under_way
        for scope in scopes:
            under_way[scope] = under_way.get(scope, 0) + 1
        return Slot(self, scopes, over_shadow)

    def _over(self, scopes: tuple[Scope, ...]) -> Iterator[Standing]:
        return (standing for standing in self.look(scopes) if not standing.passes)

    def _standing(self, scope: Scope, rule: Rule) -> Standing:
        used = self._under_way.get(scope, 0)
        # Nobody knows when one of them ends: a second is when to ask again.
        return Standing(scope, rule, used, 1, 0.0, 0.0 if used < rule.limit else 1.0)

    def _let_in(self) -> None:
        """Give free slots to those who wait, in turn."""
        if self._letting_in:
            return  # called by one that has just been let in: whoever let it in goes on, and sees what is free by now
        self._letting_in = True
        try:
            self._let_each_in()
        finally:
            self._letting_in = False

    def _let_each_in(self) -> None:
        passed = 0
        while passed < len(self._waiting):
            identity, queue = next(iter(self._waiting.items()))
            self._waiting.move_to_end(identity)
            slot = self.enter(queue[0].scopes)
            if isinstance(slot, Standing):
                passed += 1
                continue
            passed = 0
            waiting = queue.popleft()
            self.waiting -= 1
            if not queue:
                del self._waiting[identity]
            waiting.ready(slot)
