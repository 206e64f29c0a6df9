"""How many requests are under way at the same time, and who is next."""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.core.limits.decision import Scope, Standing, scope_name, scopes_of
from llmproxy.core.limits.policy import GLOBAL, KEY, KINDS, MODEL, PROVIDER, UNLIMITED, USER, Limits, Policy
from llmproxy.core.limits.slots import Slot, Slots, Waiting


def at_most(**limits: int) -> Policy:
    """So many at the same time, by kind."""
    return Policy(defaults={kind: Limits(concurrent_requests=limit) for kind, limit in limits.items()})


def of(user: str, model: str = "gpt-5") -> tuple[Scope, ...]:
    """A request of a user."""
    return scopes_of("openai", model, None, user)


class SlotTests(SynchronousTestCase):
    """Slots, and their end."""

    def entered(self, slots: Slots, scopes: tuple[Scope, ...]) -> Slot:
        """A request that gets its slot."""
        slot = slots.enter(scopes)
        assert isinstance(slot, Slot), slot
        return slot

    def refused(self, slots: Slots, scopes: tuple[Scope, ...]) -> Standing:
        """A request that gets none, and because of which rule."""
        standing = slots.enter(scopes)
        assert isinstance(standing, Standing)
        return standing

    def test_limit(self) -> None:
        """With two at a time the third is refused, until one of the two has ended."""
        slots = Slots(at_most(user=2))
        first, _ = self.entered(slots, of("alice")), self.entered(slots, of("alice"))
        standing = self.refused(slots, of("alice"))
        self.assertEqual((scope_name(standing.scope), standing.used, standing.remaining), ("user:alice", 2, 0))
        self.assertEqual((standing.passes, standing.waits_s), (False, 1.0))
        self.entered(slots, of("bob"))
        first.leave()
        self.entered(slots, of("alice"))
        self.refused(slots, of("alice"))

    def test_it_comes_back_once(self) -> None:
        """However often a request ends, its slot comes back once."""
        slots = Slots(at_most(user=2))
        first, _ = self.entered(slots, of("alice")), self.entered(slots, of("alice"))
        for _ in range(3):
            first.leave()
        self.entered(slots, of("alice"))
        self.refused(slots, of("alice"))

    def test_all_or_none(self) -> None:
        """Who is refused in one scope has taken no place in the others."""
        slots = Slots(at_most(**{GLOBAL: 2, USER: 1}))
        slot = self.entered(slots, of("alice"))
        for _ in range(5):
            self.assertEqual(scope_name(self.refused(slots, of("alice")).scope), "user:alice")
        self.entered(slots, of("bob"))
        self.assertEqual(scope_name(self.refused(slots, of("carol")).scope), "global")
        slot.leave()
        self.entered(slots, of("carol"))

    def test_order(self) -> None:
        """The most general limit is the one that is told."""
        scopes = scopes_of("openai", "gpt-5", "k" * 64, "alice")
        for kind, scope in zip((GLOBAL, PROVIDER, MODEL, KEY, USER), scopes, strict=True):
            slots = Slots(at_most(**dict.fromkeys(KINDS[KINDS.index(kind) :], 1)))
            self.entered(slots, scopes)
            self.assertEqual(self.refused(slots, scopes).scope, scope)

    def test_shadow(self) -> None:
        """A limit in the shadow refuses nobody; that it would is told."""
        shadow = Limits(concurrent_requests=1, shadow=True)
        slots = Slots(Policy(Limits(concurrent_requests=2), {USER: shadow}))
        self.assertEqual(self.entered(slots, of("alice")).over_shadow, [])
        over = self.entered(slots, of("alice")).over_shadow
        self.assertEqual([(scope_name(each.scope), each.used) for each in over], [("user:alice", 1)])
        self.assertEqual(scope_name(self.refused(slots, of("alice")).scope), "global")

    def test_what_is_kept(self) -> None:
        """Of identities that have nothing under way nothing is kept, however many there were."""
        slots = Slots(at_most(user=1))
        for number in range(1_000):
            self.entered(slots, of(str(number))).leave()
        slot = self.entered(slots, of("alice"))
        self.assertEqual([(scope_name(each.scope), each.used) for each in slots.in_use()], [("user:alice", 1)])
        slot.leave()
        self.assertEqual(slots._under_way, {})

    def test_look(self) -> None:
        """How each rule stands for a request is told, and takes no place."""
        slots = Slots(at_most(user=1, model=5))
        self.entered(slots, of("alice"))
        for _ in range(3):
            self.assertEqual(
                [(scope_name(each.scope), each.used, each.passes) for each in slots.look(of("alice"))],
                [("model:gpt-5", 1, True), ("user:alice", 1, False)],
            )


class QueueTests(SynchronousTestCase):
    """Who waits, and whose turn it is."""

    def setUp(self) -> None:
        self.slots = Slots(at_most(**{GLOBAL: 1}), 1_000)
        self.turns: list[str] = []
        self.under_way: list[Slot] = []
        slot = self.slots.enter(of("first"))
        assert isinstance(slot, Slot)
        self.under_way.append(slot)

    def wait(self, user: str, model: str = "gpt-5") -> Waiting:
        """A request of a user begins to wait; its turn is noted."""

        def ready(slot: Slot) -> None:
            self.turns.append(user)
            self.under_way.append(slot)

        waiting = self.slots.wait(of(user, model), ready)
        assert waiting is not None
        return waiting

    def ends(self) -> None:
        """The oldest request that is under way ends."""
        self.under_way.pop(0).leave()

    def test_in_turn(self) -> None:
        """A user with a hundred requests waiting keeps nobody back for more than one turn."""
        for _ in range(100):
            self.wait("alice")
        self.ends()
        self.wait("bob")
        self.ends()
        self.wait("carol")
        self.wait("carol")
        for _ in range(5):
            self.ends()
        self.assertEqual(self.turns[0], "alice")
        for user, waited_since in (("bob", 1), ("carol", 2)):
            self.assertLessEqual(self.turns[waited_since:].index(user), 2)
        self.assertEqual(sorted(self.turns), ["alice"] * 4 + ["bob"] + ["carol"] * 2)
        for _ in range(96):
            self.ends()
        self.assertEqual((self.turns.count("alice"), self.slots.waiting), (100, 0))

    def test_one_after_the_other(self) -> None:
        """Users who all wait have their turns round and round, each with its oldest request."""
        for user in "aaabbbccc":
            self.wait(user)
        for _ in range(9):
            self.ends()
        self.assertEqual("".join(self.turns), "abc" * 3)

    def test_limits_of_its_own(self) -> None:
        """Who has to wait for its own limit keeps no other from the free places."""
        self.slots.replace(at_most(**{GLOBAL: 3, USER: 1}), 1_000)
        for user in "aaab":
            self.wait(user)
        self.ends()
        self.assertEqual(self.turns, ["a", "b"])
        self.assertEqual(self.slots.waiting, 2)
        self.ends()
        self.assertEqual(self.turns, ["a", "b", "a"])

    def test_giving_up(self) -> None:
        """Who gives up is not served, and others move up; who was served, or gave up before, cannot give up."""
        alice, bob, carol = self.wait("alice"), self.wait("bob"), self.wait("carol")
        self.assertTrue(alice.give_up())
        self.assertFalse(alice.give_up())
        self.assertEqual(self.slots.waiting, 2)
        self.ends()
        self.assertEqual(self.turns, ["bob"])
        self.assertFalse(bob.give_up())
        self.assertTrue(carol.give_up())
        self.ends()
        self.assertEqual((self.turns, self.slots.waiting), (["bob"], 0))

    def test_giving_up_among_ones_own(self) -> None:
        """Of a user's requests the one that gives up goes, and no other."""
        waiting = [self.wait("alice", model) for model in ("a", "b", "c")]
        self.assertTrue(waiting[1].give_up())
        self.ends()
        self.assertFalse(waiting[0].give_up())
        self.assertTrue(waiting[2].give_up())

    def test_bounded(self) -> None:
        """Only so many may wait, of all users together; who gives up makes room."""
        self.slots.replace(at_most(**{GLOBAL: 1}), 3)
        alice, _, _ = self.wait("alice"), self.wait("alice"), self.wait("bob")
        self.assertIsNone(self.slots.wait(of("carol"), self.under_way.append))
        self.assertEqual(self.slots.waiting, 3)
        alice.give_up()
        self.wait("carol")
        self.assertIsNone(self.slots.wait(of("carol"), self.under_way.append))
        self.assertIsNone(Slots(at_most(**{GLOBAL: 1})).wait(of("alice"), self.under_way.append))

    def test_new_limits(self) -> None:
        """Limits that become wider let in at once whom they can, in turn; narrower ones send nobody away."""
        for user in "aab":
            self.wait(user)
        self.slots.replace(at_most(**{GLOBAL: 3}), 0)
        self.assertEqual(self.turns, ["a", "b"])
        self.slots.replace(at_most(**{GLOBAL: 2}), 0)
        self.assertEqual(self.slots.waiting, 1)
        self.ends()
        self.assertEqual(self.turns, ["a", "b"])
        self.ends()
        self.assertEqual(self.turns, ["a", "b", "a"])
        self.wait_is_refused()

    def wait_is_refused(self) -> None:
        """As the queue has no places by now."""
        self.assertIsNone(self.slots.wait(of("a"), self.under_way.append))

    def test_no_limits_any_more(self) -> None:
        """Where the limit is taken away, nobody is left waiting."""
        for user in "aab":
            self.wait(user)
        self.slots.replace(Policy(Limits(concurrent_requests=UNLIMITED)), 0)
        self.assertEqual((self.turns, self.slots.waiting), (["a", "b", "a"], 0))

    def test_ended_before_it_began(self) -> None:
        """A thousand that wait and end at once, since nobody wants the answer any more, end one after the other."""
        for number in range(1_000):
            assert self.slots.wait(of(str(number % 10)), Slot.leave) is not None
        self.ends()
        self.assertEqual((self.slots.waiting, self.slots._under_way), (0, {}))

    def test_others_give_up_meanwhile(self) -> None:
        """Who is served may at the same moment make others give up, come anew, or wait again."""
        others = [self.wait(user) for user in "abc"]

        def ready(slot: Slot) -> None:
            self.turns.append("x")
            others[1].give_up()
            slot.leave()
            self.wait("d")

        self.slots.wait(of("x"), ready)
        others[0].give_up()
        others[2].give_up()
        self.ends()
        for _ in range(3):
            if self.under_way:
                self.ends()
        self.assertEqual((sorted(self.turns), self.slots.waiting, self.slots._under_way), (["b", "d", "x"], 0, {}))

    def test_room_that_is_made_meanwhile(self) -> None:
        """Where one that is let in ends another request, the place of that one is not forgotten."""
        self.slots.replace(at_most(**{GLOBAL: 2, USER: 1}), 1_000)
        other = self.slots.enter(of("alice"))
        assert isinstance(other, Slot)
        self.wait("alice")

        def ready(slot: Slot) -> None:
            self.turns.append("bob")
            other.leave()

        self.slots.wait(of("bob"), ready)
        self.ends()
        self.assertEqual((self.turns, self.slots.waiting), (["bob", "alice"], 0))

    def test_who_gives_up_does_not_hold_up_who_is_behind(self) -> None:
        """Alice's oldest request waits for a model that is taken; when it gives up, her next one finds room at once."""
        slots = Slots(at_most(**{MODEL: 1}), 10)
        first = slots.enter(of("alice", "gpt-4"))
        assert isinstance(first, Slot)
        other = slots.enter(of("bob", "gpt-5"))
        assert isinstance(other, Slot)
        let_in: list[Slot] = []
        oldest = slots.wait(of("alice", "gpt-4"), let_in.append)
        slots.wait(of("alice", "gpt-5"), let_in.append)
        assert oldest is not None
        other.leave()
        self.assertEqual(let_in, [])
        self.assertTrue(oldest.give_up())
        self.assertEqual((len(let_in), slots.waiting), (1, 0))

    @settings(max_examples=150, deadline=None)
    @given(
        st.tuples(*[st.sampled_from((0, 1, 2, 3))] * 3),
        st.integers(0, 8),
        st.lists(st.integers(0, 2**32), min_size=5, max_size=80),
    )
    def test_any_traffic(self, limits: tuple[int, int, int], most: int, moves: list[int]) -> None:
        """Whoever comes, waits, gives up or goes: there are never too many, nobody waits where there is room, and in
        the end nothing is left."""
        all_of_them, of_a_user, of_a_model = limits
        slots = Slots(at_most(**{GLOBAL: all_of_them, USER: of_a_user, MODEL: of_a_model}), most)
        by_kind = {GLOBAL: all_of_them, USER: of_a_user, MODEL: of_a_model}
        under_way: list[tuple[Slot, tuple[Scope, ...]]] = []
        waiting: list[tuple[Waiting, tuple[Scope, ...]]] = []

        def used(scope: Scope) -> int:
            return sum(scope in scopes for _, scopes in under_way)

        def has_room(scopes: tuple[Scope, ...]) -> bool:
            return all(not by_kind.get(scope[0]) or used(scope) < by_kind[scope[0]] for scope in scopes)

        def wait(scopes: tuple[Scope, ...]) -> None:
            def ready(slot: Slot) -> None:
                under_way.append((slot, scopes))
                waiting[:] = [each for each in waiting if each[0] is not found]

            found = slots.wait(scopes, ready)
            self.assertEqual(found is None, len(waiting) >= most)
            if found is not None:
                waiting.append((found, scopes))

        for move in moves:
            chance = Random(move)
            scopes = of(chance.choice("abc"), chance.choice(("gpt-4", "gpt-5")))
            match chance.choice(("enter", "enter", "leave", "give up")):
                case "enter":
                    room = has_room(scopes)
                    slot = slots.enter(scopes)
                    self.assertEqual(isinstance(slot, Slot), room)
                    if isinstance(slot, Slot):
                        under_way.append((slot, scopes))
                    else:
                        wait(scopes)
                case "leave" if under_way:
                    slot, _ = under_way.pop(chance.randrange(len(under_way)))
                    slot.leave()
                case "give up" if waiting:
                    given_up, _ = waiting.pop(chance.randrange(len(waiting)))
                    self.assertTrue(given_up.give_up())
            for scope in {scope for _, scopes in under_way for scope in scopes}:
                self.assertTrue(not by_kind.get(scope[0]) or used(scope) <= by_kind[scope[0]])
            self.assertEqual(slots.waiting, len(waiting))
            users = {scopes[-1] for _, scopes in waiting}
            for user in users:
                oldest = next(scopes for _, scopes in waiting if scopes[-1] == user)
                self.assertFalse(has_room(oldest))
        while under_way:
            under_way.pop()[0].leave()
        self.assertEqual((waiting, slots.waiting, slots._under_way, slots._waiting), ([], 0, {}, {}))
