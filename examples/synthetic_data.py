# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0; see the LICENSE file.
"""
English-like text and a classification task with easy and hard samples, made from a grammar and a seed.

For examples, tests and first experiments on a machine with no network and no data. The text has what a masked language
model can learn: agreement of subjects and verbs (also past a noun of the other number), topics that hold through a
paragraph, pronouns that fit the person named before, words that go together, and fixed idioms.

    python examples/synthetic_data.py --output_dir data/synthetic --num_documents 2000 --seed 0
"""

import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate, islice
from pathlib import Path
from typing import TypeVar

from transformers import BertTokenizer
from transformers.utils import logging

from example_utils import (
    parse_arguments,
    run_script,
    show_progress_messages,
    train_wordpiece_tokenizer,
    write_text_atomically,
)


__all__ = ["generate_classification", "generate_documents", "train_tokenizer"]

logger = logging.get_logger(__name__)

Item = TypeVar("Item")


# ---------------------------------------------------------------------------------------------------------------------
# Lexicon. A topic's verbs are listed with the nouns that they take: "mend" goes with nets, not with tides.
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Topic:
    """The words of one subject matter. `actions` are (verb, its objects); `phrases` are fixed adjective-noun pairs."""

    roles: tuple[str, ...]
    nouns: tuple[str, ...]
    adjectives: tuple[str, ...]
    places: tuple[str, ...]
    actions: tuple[tuple[str, tuple[str, ...]], ...]
    phrases: tuple[str, ...]


def _topic(roles: str, nouns: str, adjectives: str, places: str, actions: str, phrases: str) -> Topic:
    pairs = (action.split(":") for action in actions.split(";"))
    return Topic(
        roles=tuple(roles.split()),
        nouns=tuple(nouns.split()),
        adjectives=tuple(adjectives.split()),
        places=tuple(places.split()),
        actions=tuple((verb.strip(), tuple(objects.split())) for verb, objects in pairs),
        phrases=tuple(phrase.strip() for phrase in phrases.split(",")),
    )


TOPICS = {
    "sea": _topic(
        "sailor captain fisherman diver boatman pilot",
        "boat ship net sail anchor rope wave tide gull shell mast oar lantern island whale storm crab deck raft "
        "compass",
        "salty calm rough deep foggy drowned tarred distant leaking seaworthy",
        "harbour beach pier lighthouse shore bay cove",
        "mend: net sail rope mast; row: boat raft; steer: ship boat raft; lower: anchor sail rope net; "
        "raise: anchor sail mast lantern; follow: tide whale gull ship; fear: storm wave whale tide; "
        "haul: net rope anchor; light: lantern; paint: boat ship oar mast",
        "salt water, high tide, open sea, fresh wind",
    ),
    "kitchen": _topic(
        "cook baker waiter chef butcher host",
        "soup pot loaf knife oven spoon onion sauce plate cake pepper bowl apron kettle pie egg lemon cheese "
        "pan recipe",
        "hot sweet bitter spicy burnt tender crisp ripe stale creamy",
        "kitchen bakery pantry tavern inn cellar restaurant",
        "stir: soup sauce pot; bake: loaf cake pie; chop: onion pepper lemon; slice: loaf cheese cake lemon; "
        "taste: soup sauce pie cheese cake; wash: plate bowl pot spoon pan; heat: oven pan kettle soup; "
        "sharpen: knife; fold: apron; peel: onion egg lemon; copy: recipe; serve: soup pie cake cheese",
        "fresh bread, warm milk, black pepper, cold supper",
    ),
    "garden": _topic(
        "gardener florist botanist beekeeper neighbour",
        "rose seed hedge spade tree leaf bee flower weed bench fence root branch apple tulip hive pond petal "
        "vine basket",
        "green blooming thorny fragrant wild shady withered leafy muddy golden",
        "garden orchard greenhouse meadow park lawn nursery",
        "plant: seed rose tree tulip vine hedge; water: rose tulip flower tree vine; prune: hedge rose vine "
        "tree branch; "
        "pick: apple flower rose tulip; dig: root weed; rake: leaf petal; repair: fence bench hive; "
        "fill: basket pond; watch: bee flower; burn: weed branch leaf; carry: spade basket",
        "bright petals, rich soil, wild honey, tall grass",
    ),
    "school": _topic(
        "teacher pupil student headmaster librarian tutor",
        "book lesson pencil desk essay poem exam map chalk letter page story sum riddle answer question word "
        "notebook bell",
        "clever careful difficult diligent noisy curious strict attentive blank printed",
        "school library classroom hall playground college",
        "read: book poem letter story page; write: essay letter poem word story; answer: question letter; "
        "learn: lesson poem word; solve: riddle sum; study: map book lesson; open: book notebook desk; "
        "borrow: book pencil notebook; ring: bell; pass: exam; forget: answer word lesson; copy: page sum; ask: "
        "question",
        "good marks, loud voices, long division, foreign words",
    ),
    "market": _topic(
        "merchant customer trader tailor grocer pedlar",
        "coin stall price scale basket bargain purse carpet silk barrel cart debt shop sack hat coat jewel "
        "ribbon crate",
        "cheap expensive rare costly crowded honest greedy second-hand colourful worthless",
        "market square shop warehouse street bazaar",
        "sell: carpet hat jewel silk ribbon coat; buy: carpet hat coat jewel barrel ribbon; count: coin sack "
        "crate barrel; "
        "weigh: sack silk jewel; lower: price; raise: price; pay: debt price; load: cart crate; pull: cart; "
        "empty: purse basket sack; open: shop stall crate; measure: silk carpet coat; strike: bargain; steal: "
        "purse coin",
        "small change, fair price, fine cloth, ready money",
    ),
    "railway": _topic(
        "driver conductor passenger porter engineer guard",
        "train ticket engine carriage signal track bridge whistle suitcase tunnel timetable wheel seat window "
        "platform "
        "lamp journey crossing coal-car trunk",
        "late fast slow crowded punctual steep rusty iron electric narrow",
        "station platform depot junction office crossing",
        "drive: train engine; miss: train; board: train carriage; check: ticket timetable signal wheel; "
        "oil: engine wheel; cross: bridge track; enter: tunnel carriage; blow: whistle; pack: suitcase trunk; "
        "clean: carriage window lamp engine; stop: train engine; book: ticket seat journey; change: signal wheel",
        "return ticket, night train, full speed, heavy luggage",
    ),
    "music": _topic(
        "singer pianist composer drummer violinist conductor",
        "song violin drum piano melody concert chord choir stage note flute trumpet rehearsal chorus tune organ "
        "string "
        "opera waltz harp",
        "loud soft gentle solemn cheerful famous rhythmic hoarse graceful melodious",
        "theatre hall studio chapel ballroom opera-house",
        "sing: song melody chorus tune; play: violin drum piano flute trumpet waltz harp organ; tune: violin "
        "piano harp; "
        "compose: song waltz opera melody; conduct: choir concert opera; hear: melody song concert choir trumpet; "
        "practise: chord waltz tune; attend: concert rehearsal opera; break: string drum; whistle: tune melody; "
        "hold: note chord; praise: choir concert opera",
        "sheet music, loud applause, first violin, high note",
    ),
    "hospital": _topic(
        "doctor nurse patient surgeon chemist midwife",
        "fever bandage wound medicine bed cough bottle pill needle operation ward bone heart tooth pulse bruise "
        "crutch "
        "stretcher visitor illness",
        "sick pale weak healthy feverish painful swollen broken clean patient",
        "hospital clinic ward surgery sickroom infirmary",
        "treat: fever wound illness cough bruise; cure: fever illness cough; wrap: bandage wound; "
        "clean: wound needle bed; prepare: medicine operation bed bottle; feel: pulse bruise; "
        "mend: bone; pull: tooth; swallow: pill medicine; carry: stretcher; visit: ward; need: crutch medicine "
        "operation; "
        "examine: wound tooth bone heart; label: bottle; shake: bottle",
        "high fever, strong medicine, clean linen, slow recovery",
    ),
    "farm": _topic(
        "farmer shepherd ploughman milkmaid miller blacksmith",
        "cow horse sheep plough field barn hen pig goat wagon harvest gate fence calf saddle bucket stable "
        "hay-stack duck "
        "lamb",
        "fat hungry stubborn fertile dusty lame woolly tame hardy barren",
        "farm barn field mill stable pasture village",
        "milk: cow goat; feed: hen pig horse calf duck lamb; ride: horse; plough: field; shear: sheep lamb; "
        "close: gate stable barn; saddle: horse; build: barn fence stable; drive: wagon sheep cow; "
        "fill: bucket wagon barn; gather: harvest sheep; lead: horse cow goat calf; count: sheep hen lamb duck; "
        "paint: gate barn fence",
        "dry hay, ripe corn, early frost, fresh milk",
    ),
    "court": _topic(
        "judge lawyer witness clerk thief constable",
        "trial crime verdict law prison key sentence document clue alibi reward wig oath jury fine motive "
        "signature cell "
        "robbery pardon",
        "guilty innocent solemn legal suspicious secret stern fair false hidden",
        "court prison office chamber station cell",
        "hear: verdict sentence oath; sign: document pardon; break: law oath; find: clue motive key document; "
        "lock: cell; commit: crime robbery; pay: fine; read: document verdict law sentence; swear: oath; "
        "deny: crime robbery motive; hide: key clue document; investigate: crime robbery; accept: verdict "
        "pardon reward; "
        "forge: signature document; postpone: trial",
        "hard labour, false witness, common law, free pardon",
    ),
}

FEMALE_NAMES = "anna clara mary ruth helen alice emma lucy jane nora julia sarah martha edith laura ida".split()
MALE_NAMES = (
    "john peter henry george paul oliver thomas simon walter hugh martin arthur felix edgar leo victor".split()
)
CAPITALISED = frozenset((*FEMALE_NAMES, *MALE_NAMES, "monday", "sunday"))
TIMES = (
    "in the morning,in the evening,at noon,at midnight,before dawn,after supper,on monday,on sunday,last winter,"
    "in early spring,at the end of the week,the next day,that afternoon,once more"
).split(",")
IDIOMS = (
    "by and large,as a matter of fact,once in a blue moon,sooner or later,all of a sudden,for better or worse,"
    "as luck would have it,at the eleventh hour,in the blink of an eye,against all odds,little by little,"
    "to make a long story short,when all is said and done,in the long run,to tell the truth"
).split(",")
PROVERBS = (
    "every cloud has a silver lining;actions speak louder than words;better late than never;haste makes waste;"
    "too many cooks spoil the broth;a stitch in time saves nine;all that glitters is not gold;"
    "the early bird catches the worm;still waters run deep;no news is good news;a watched pot never boils;"
    "two heads are better than one"
).split(";")
FEELINGS = "happy sad angry proud tired worried glad lonely afraid grateful calm jealous nervous ashamed".split()
MANNERS = "slowly quickly carefully quietly gladly often always never seldom rarely patiently eagerly".split()
SIZES = "old new small large heavy little broken beautiful strange common".split()
NUMBERS = "two three four five six seven ten twelve several many".split()
PREPOSITIONS = "near behind beside under above opposite".split()
MOTIONS = "walk run hurry return travel wander come".split()
INTRANSITIVES = "sleep wait laugh rest sing smile listen weep whisper pause".split()
SAYINGS = "say whisper answer cry add reply".split()
WEATHERS = (
    "it was raining,the sun was shining,a cold wind was blowing,the snow was falling,the fog was lifting,"
    "it was getting dark,the moon was full,the day was warm"
).split(",")

IRREGULAR_PASTS = {
    "blow": "blew", "break": "broke", "build": "built", "buy": "bought", "come": "came", "commit": "committed",
    "dig": "dug", "drive": "drove", "feed": "fed", "feel": "felt", "find": "found", "forget": "forgot",
    "hear": "heard", "hide": "hid", "hold": "held", "label": "labelled", "lead": "led", "light": "lit", "pay": "paid",
    "read": "read", "ride": "rode", "ring": "rang", "run": "ran", "say": "said", "sell": "sold", "shake": "shook",
    "sing": "sang", "sleep": "slept", "steal": "stole", "strike": "struck", "swear": "swore", "travel": "travelled",
    "weep": "wept", "write": "wrote",
}  # fmt: skip
IRREGULAR_PLURALS = {
    "boatman": "boatmen", "calf": "calves", "fisherman": "fishermen", "knife": "knives", "leaf": "leaves",
    "loaf": "loaves", "midwife": "midwives", "ploughman": "ploughmen", "sheep": "sheep", "thief": "thieves",
    "tooth": "teeth",
}  # fmt: skip
VOWELS = "aeiou"
CLUSTERS = ("s", "x", "z", "ch", "sh")


def _plural(noun: str) -> str:
    if noun in IRREGULAR_PLURALS:
        return IRREGULAR_PLURALS[noun]
    if noun.endswith(CLUSTERS):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in VOWELS:
        return noun[:-1] + "ies"
    return noun + "s"


def _third_person(verb: str) -> str:
    if verb.endswith(CLUSTERS):
        return verb + "es"
    if verb.endswith("y") and verb[-2] not in VOWELS:
        return verb[:-1] + "ies"
    return verb + "s"


def _past(verb: str) -> str:
    if verb in IRREGULAR_PASTS:
        return IRREGULAR_PASTS[verb]
    if verb.endswith("e"):
        return verb + "d"
    if verb.endswith("y") and verb[-2] not in VOWELS:
        return verb[:-1] + "ied"
    one_syllable = sum(letter in VOWELS for letter in verb) == 1
    if one_syllable and verb[-1] not in VOWELS + "wxy" and verb[-2] in VOWELS:
        return verb + verb[-1] + "ed"
    return verb + "ed"


def _article(phrase: str) -> str:
    return ("an " if phrase[0] in VOWELS and not phrase.startswith("one") else "a ") + phrase


# ---------------------------------------------------------------------------------------------------------------------
# Documents
# ---------------------------------------------------------------------------------------------------------------------


@cache
def _zipf_weights(length: int) -> tuple[float, ...]:
    """Cumulative weights that make early items of a list common and late ones rare, as words are in real text."""
    return tuple(accumulate((rank + 2) ** -0.8 for rank in range(length)))


def _pick(generator: random.Random, items: Sequence[Item]) -> Item:
    return generator.choices(items, cum_weights=_zipf_weights(len(items)))[0]


@dataclass
class _Person:
    name: str
    role: str
    subject: str
    object: str
    possessive: str
    named: bool = False


@dataclass
class _Scene:
    """What stays the same within a paragraph: topic, tense, the words at hand, who is there and who was named last."""

    generator: random.Random
    topic: Topic
    past: bool
    people: list[_Person]
    nouns: list[str] = field(init=False)
    adjectives: list[str] = field(init=False)
    actions: list[tuple[str, tuple[str, ...]]] = field(init=False)
    place: str = field(init=False)
    last: _Person | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        # A paragraph is about a few things, which come back in it.
        self.place = _pick(self.generator, self.topic.places)
        self.nouns = self.generator.sample([noun for noun in self.topic.nouns if noun != self.place], 7)
        self.adjectives = [*self.generator.sample(self.topic.adjectives, 4), *self.generator.sample(SIZES, 2)]
        self.actions = self.generator.sample(self.topic.actions, 5)

    def chance(self, probability: float) -> bool:
        return self.generator.random() < probability

    def verb(self, base: str, plural: bool = False) -> str:
        return _past(base) if self.past else base if plural else _third_person(base)

    def be(self, plural: bool = False) -> str:
        return ("were" if plural else "was") if self.past else ("are" if plural else "is")

    def noun(self, plural: bool = False, choices: Sequence[str] | None = None) -> str:
        noun = _pick(self.generator, choices or self.nouns)
        return _plural(noun) if plural else noun

    def two_nouns(self, first_plural: bool, second_plural: bool) -> tuple[str, str]:
        first, second = self.generator.sample(self.nouns, 2)
        return _plural(first) if first_plural else first, _plural(second) if second_plural else second

    def adjective(self) -> str:
        return _pick(self.generator, self.adjectives)

    def thing(self, choices: Sequence[str] | None = None) -> str:
        """An object: "the net", "an old net", "three nets", or, where any noun will do, a fixed pair of the topic."""
        roll = self.generator.random()
        if roll < 0.4:
            return "the " + self.noun(self.chance(0.3), choices)
        if roll < 0.65:
            return _article(f"{self.adjective()} {self.noun(False, choices)}")
        if roll < 0.8:
            return f"the {self.adjective()} {self.noun(self.chance(0.3), choices)}"
        if roll < 0.92 or choices:
            return f"{_pick(self.generator, NUMBERS)} {self.noun(True, choices)}"
        return "the " + _pick(self.generator, self.topic.phrases)

    def action(self, plural: bool = False) -> str:
        """A verb with an object that it takes."""
        verb, objects = _pick(self.generator, self.actions)
        return f"{self.verb(verb, plural)} {self.thing(objects)}"

    def person(self) -> str:
        """Someone as a subject: by pronoun only where that person was named last."""
        if self.last is not None and self.chance(0.55):
            return self.last.subject
        self.last = self.generator.choice(self.people)
        # A role says nothing about the pronoun that follows; so everyone is named at first.
        return f"the {self.last.role}" if self.last.named and self.chance(0.25) else self.name(self.last)

    def name(self, person: _Person | None = None) -> str:
        """Names the given or a random person, who is then the one that pronouns refer to."""
        self.last = person or self.generator.choice(self.people)
        self.last.named = True
        return self.last.name

    def where(self) -> str:
        return f"{self.generator.choice(('in', 'near', 'behind', 'at'))} the {self.place}"


def _introduction(scene: _Scene) -> str:
    name = scene.name()
    role = scene.last.role
    role = f"the {role}" if scene.chance(0.5) else _article(f"{_pick(scene.generator, SIZES)} {role}")
    return f"{name} , {role} , {scene.verb('live')} {scene.where()}"


def _simple(scene: _Scene) -> str:
    manner = f" {scene.generator.choice(MANNERS)}" if scene.chance(0.25) else ""
    time = f" {_pick(scene.generator, TIMES)}" if scene.chance(0.35) else ""
    return f"{scene.person()}{manner} {scene.action()}{time}"


def _agreement(scene: _Scene) -> str:
    """The verb agrees with the first noun; the one in between has a number of its own."""
    plural = scene.chance(0.5)
    subject, between = scene.two_nouns(plural, scene.chance(0.5))
    preposition = _pick(scene.generator, PREPOSITIONS)
    return f"the {subject} {preposition} the {between} {scene.be(plural)} {scene.adjective()}"


def _existence(scene: _Scene) -> str:
    plural = scene.chance(0.5)
    if plural:
        amount = f"{_pick(scene.generator, NUMBERS)} {scene.noun(True)}"
    else:
        amount = _article(f"{scene.adjective()} {scene.noun()}")
    return f"there {scene.be(plural)} {amount} {scene.where()}"


def _two_actions(scene: _Scene) -> str:
    return f"{scene.person()} {scene.action()} and {scene.action()}"


def _possession(scene: _Scene) -> str:
    subject = scene.person()
    verb, objects = _pick(scene.generator, scene.actions)
    return f"{subject} {scene.verb(verb)} {scene.last.possessive} {scene.noun(scene.chance(0.3), objects)}"


def _relative(scene: _Scene) -> str:
    plural = scene.chance(0.4)
    role = _pick(scene.generator, scene.topic.roles)
    scene.last = None
    return (
        f"the {_plural(role) if plural else role} who {scene.action(plural)} {scene.be(plural)} "
        f"{_pick(scene.generator, FEELINGS)}"
    )


def _because(scene: _Scene) -> str:
    subject = scene.person()
    return (
        f"{subject} {scene.be()} {_pick(scene.generator, FEELINGS)} because {scene.last.subject} "
        f"{'had' if scene.past else 'has'} no {scene.noun(scene.chance(0.5))}"
    )


def _when(scene: _Scene) -> str:
    first = scene.person()
    return f"when {first} {scene.action()} , the {_plural(_pick(scene.generator, scene.topic.roles))} " + (
        f"{scene.verb(_pick(scene.generator, INTRANSITIVES), True)}"
    )


def _motion(scene: _Scene) -> str:
    time = f"{_pick(scene.generator, TIMES)} , " if scene.chance(0.5) else ""
    subject = scene.person()
    return f"{time}{subject} {scene.verb(_pick(scene.generator, MOTIONS))} to the {scene.place}"


def _speech(scene: _Scene) -> str:
    verb, objects = _pick(scene.generator, scene.actions)
    modal = _pick(scene.generator, ("will", "must", "can", "should"))
    words = f"we {modal} {verb} the {scene.noun(scene.chance(0.4), objects)}"
    return f'" {words} , " {scene.verb(_pick(scene.generator, SAYINGS))} {scene.name()}'


def _question(scene: _Scene) -> str:
    verb, objects = _pick(scene.generator, scene.actions)
    return f"{'did' if scene.past else 'does'} {scene.name()} {verb} the {scene.noun(False, objects)} ?"


def _comparison(scene: _Scene) -> str:
    plural = scene.chance(0.4)
    first, second = scene.two_nouns(plural, plural)
    return f"the {first} {scene.be(plural)} more {scene.adjective()} than the {second}"


def _feeling(scene: _Scene) -> str:
    idiom = scene.generator.choice(IDIOMS)
    return f"{idiom} , {scene.person()} {scene.be()} {_pick(scene.generator, FEELINGS)}"


def _weather(scene: _Scene) -> str:
    return f"{_pick(scene.generator, WEATHERS)} , and {scene.person()} {scene.action()}"


def _proverb(scene: _Scene) -> str:
    return scene.generator.choice(PROVERBS)


SENTENCES = (
    (_simple, 6), (_agreement, 3), (_existence, 2), (_two_actions, 2), (_possession, 2), (_relative, 2), (_because, 2),
    (_when, 2), (_motion, 2), (_speech, 2), (_question, 1), (_comparison, 1), (_feeling, 2), (_weather, 1),
    (_proverb, 1),
)  # fmt: skip


def _finish(sentence: str) -> str:
    """Gives a sentence of separated, lower-case words the spacing and the capitals of written English."""
    for before, after in ((" ,", ","), (" ?", "?")):
        sentence = sentence.replace(before, after)
    if sentence.startswith('" '):
        opening, _, rest = sentence[2:].partition(' "')
        sentence = f'"{opening}"{rest}'
    first = 1 if sentence.startswith('"') else 0
    sentence = sentence[:first] + sentence[first].upper() + sentence[first + 1 :]
    words = [word.capitalize() if word.strip(',.?"') in CAPITALISED else word for word in sentence.split(" ")]
    sentence = " ".join(words)
    return sentence if sentence.endswith("?") else sentence + "."


def _people(generator: random.Random, topic: Topic, count: int) -> list[_Person]:
    people = []
    for name in generator.sample(FEMALE_NAMES + MALE_NAMES, count):
        pronouns = ("she", "her", "her") if name in FEMALE_NAMES else ("he", "him", "his")
        people.append(_Person(name, _pick(generator, topic.roles), *pronouns))
    return people


def _document(generator: random.Random) -> str:
    names = list(TOPICS)
    main = TOPICS[generator.choice(names)]
    people = _people(generator, main, generator.choice((1, 2, 2, 3)))
    past = generator.random() < 0.75
    makers = [maker for maker, _ in SENTENCES]
    weights = [weight for _, weight in SENTENCES]
    paragraphs = []
    for number in range(generator.randint(2, 4)):
        # Mostly one topic; sometimes a paragraph goes elsewhere, with the same people.
        topic = main if number == 0 or generator.random() < 0.75 else TOPICS[generator.choice(names)]
        scene = _Scene(generator, topic, past, people)
        sentences = [_introduction(scene)] if number == 0 else [_simple(scene)]
        for maker in generator.choices(makers, weights, k=generator.randint(3, 7)):
            sentences.append(maker(scene))
        paragraphs.append(" ".join(_finish(sentence) for sentence in sentences))
    return "\n".join(paragraphs)


def generate_documents(num_documents: int, seed: int = 0) -> Iterator[str]:
    """
    Makes English-like documents.

    Document `i` depends on `(seed, i)` alone: a longer run begins with the documents of a shorter one.

    Args:
        num_documents (`int`): How many.
        seed (`int`, *optional*, defaults to 0): Chooses the documents. No global random state is read or changed.

    Yields:
        `str`: Two to four paragraphs, one a line, each of four to eight sentences.

    Raises:
        ValueError: `num_documents` is negative.
    """
    _check_count("num_documents", num_documents)
    # A generator function would raise only when it is first asked for a document.
    return (_document(random.Random(f"document {seed} {index}")) for index in range(num_documents))


# ---------------------------------------------------------------------------------------------------------------------
# Classification
# ---------------------------------------------------------------------------------------------------------------------

# What is reviewed, with parts that have opinions of their own.
REVIEWED = {
    "film": "songs actors scenes jokes costumes",
    "play": "actors speeches costumes scenes jokes",
    "book": "pictures chapters characters poems stories",
    "concert": "singers drums songs violins speeches",
    "hotel": "rooms beds waiters gardens breakfasts",
    "restaurant": "waiters soups cakes wines plates",
    "museum": "paintings guides halls maps statues",
    "journey": "stations drivers seats guides villages",
}
POSITIVE = "wonderful delightful charming excellent superb lovely brilliant splendid pleasant memorable".split()
NEGATIVE = "dreadful boring awful terrible tedious clumsy miserable dull unpleasant forgettable".split()
LIKES = "loved enjoyed admired adored praised".split()
DISLIKES = "hated disliked regretted despised endured".split()
OPENINGS = (
    "",
    "on monday ,",
    "last winter ,",
    "as a matter of fact ,",
    "to tell the truth ,",
    "my sister and i agree :",
    "after supper ,",
    "by and large ,",
)
INTENSIFIERS = ("", "really ", "quite ", "truly ", "rather ", "very ")


def _easy_sentence(generator: random.Random, whole: str, parts: str, positive: bool) -> str:
    """The verdict is said outright, and no word points the other way."""
    adjective = generator.choice(POSITIVE if positive else NEGATIVE)
    other = generator.choice(POSITIVE if positive else NEGATIVE)
    verb = generator.choice(LIKES if positive else DISLIKES)
    degree = generator.choice(INTENSIFIERS)
    return generator.choice(
        (
            f"the {whole} was {degree}{adjective} , and we {verb} it .",
            f"we {verb} the {whole} , and its {parts} were {degree}{adjective} .",
            f"{_article(f'{adjective} {whole}')} with {other} {parts} .",
            f"the {parts} were {adjective} and the {whole} was {degree}{other} .",
        )
    )


def _hard_sentence(generator: random.Random, whole: str, parts: str, positive: bool) -> str:
    """
    The verdict is on the whole; every form holds a word that points the other way, or turns one round. Each form
    exists for both labels with the same function words, so that counting words does not give the label away.
    """
    this, that = (POSITIVE, NEGATIVE) if positive else (NEGATIVE, POSITIVE)
    for_it, against_it = generator.choice(this), generator.choice(that)
    verb = generator.choice(LIKES if positive else DISLIKES)
    other_verb = generator.choice(DISLIKES if positive else LIKES)
    form = generator.randrange(7)
    if form == 0:  # negation
        start = generator.choice(
            ("the {0} was not", "nobody could call the {0}", "the {0} was never", "i would not call the {0}")
        )
        return f"{start.format(whole)} {generator.choice(INTENSIFIERS)}{against_it} ."
    if form == 1:  # two negations
        start = generator.choice(("it is not true that", "nobody could say that", "i do not think that"))
        return f"{start} the {whole} was not {for_it} ."
    if form == 2:  # the main clause decides, not the conceded one
        clauses = (f"although its {parts} were {against_it}", f"the {whole} was {for_it}")
        first, second = clauses if generator.random() < 0.5 else clauses[::-1]
        return f"{first} , {second} ."
    if form == 3:  # "but" turns round what was said first
        start = generator.choice(("everyone said that", "the papers wrote that", "my friends believed that"))
        return f"{start} the {whole} was {against_it} , but we {verb} it ."
    if form == 4:  # "it" is the whole, "they" are its parts
        clauses = [f"it was {for_it}", f"they were {against_it}"]
        generator.shuffle(clauses)
        return f"the {whole} and its {parts} had little in common : {clauses[0]} and {clauses[1]} ."
    if form == 5:  # who did what: only the speaker's verb counts
        clauses = [f"we {verb} it", f"the critics {other_verb} it"]
        generator.shuffle(clauses)
        return f"about the {whole} we did not agree : {clauses[0]} , {clauses[1]} ."
    # The verb tells which of two nouns the clause is about.
    if generator.random() < 0.5:
        return f"the {parts} of the {whole} , which was {for_it} , were {against_it} ."
    return f"the {whole} with the {parts} , which were {against_it} , was {for_it} ."


def generate_classification(num_samples: int, seed: int = 0, hard_fraction: float = 0.5) -> list[dict]:
    """
    Makes a two-class task: is the writer's verdict on the thing reviewed good (1) or bad (0)?

    Easy samples say it outright. Hard ones need negation, concession, the person who holds an opinion, or the number
    of a verb or a pronoun, and hold words of both kinds. Sample `i` depends on `(seed, i)` and `hard_fraction` alone.

    Args:
        num_samples (`int`): How many.
        seed (`int`, *optional*, defaults to 0): Chooses the samples; use another one for a validation set.
        hard_fraction (`float`, *optional*, defaults to 0.5): The expected share of hard samples, from 0 to 1.

    Returns:
        `list[dict]`: Rows with `sentence` (`str`), `label` (0 or 1) and `difficulty` (`"easy"` or `"hard"`).

    Raises:
        ValueError: `num_samples` is negative or `hard_fraction` outside [0, 1].
    """
    _check_count("num_samples", num_samples)
    if not 0 <= hard_fraction <= 1:
        raise ValueError(f"hard_fraction={hard_fraction} must lie between 0 and 1.")
    samples = []
    for index in range(num_samples):
        generator = random.Random(f"classification {seed} {index}")
        label = generator.randrange(2)
        hard = generator.random() < hard_fraction
        whole = generator.choice(list(REVIEWED))
        parts = generator.choice(REVIEWED[whole].split())
        opening = generator.choice(OPENINGS)
        make = _hard_sentence if hard else _easy_sentence
        sentence = make(generator, whole, parts, bool(label))
        samples.append(
            {
                "sentence": f"{opening} {sentence}".strip(),
                "label": label,
                "difficulty": "hard" if hard else "easy",
            }
        )
    return samples


def _check_count(name: str, value: int) -> None:
    if value < 0:
        raise ValueError(f"{name}={value} must not be negative.")


# ---------------------------------------------------------------------------------------------------------------------
# Tokenizer and script
# ---------------------------------------------------------------------------------------------------------------------


def train_tokenizer(texts: Iterable[str], vocab_size: int, output_dir: str | Path | None = None) -> BertTokenizer:
    """
    Trains a small lower-cased WordPiece tokenizer; see [`~example_utils.train_wordpiece_tokenizer`].

    Args:
        texts (iterable of `str`): The training text.
        vocab_size (`int`): The largest number of entries, special tokens included.
        output_dir (`str` or `Path`, *optional*): Where to save it.

    Returns:
        `BertTokenizer`: With `[PAD]` at 0 and a `model_max_length` of 512.
    """
    return train_wordpiece_tokenizer(texts, vocab_size, output_dir)


@dataclass
class SyntheticDataArguments:
    """What the script writes."""

    output_dir: str = field(metadata={"help": "The folder to write train.txt (documents, a blank line between) into."})
    num_documents: int = field(default=2000, metadata={"help": "How many documents train.txt gets."})
    num_validation_documents: int = field(
        default=0, metadata={"help": "How many further documents to write to validation.txt."}
    )
    num_classification_samples: int = field(
        default=0,
        metadata={"help": "How many rows of the classification task to write to classification_train.jsonl."},
    )
    seed: int = field(default=0, metadata={"help": "Chooses the data: the same seed gives the same files."})


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes the files that the arguments ask for, each whole or not at all."""
    (args,) = parse_arguments(SyntheticDataArguments, arguments, description=__doc__.partition("\n\n")[0])
    show_progress_messages(logger)
    output_dir = Path(args.output_dir)
    _check_count("num_documents", args.num_documents)
    _check_count("num_validation_documents", args.num_validation_documents)
    documents = generate_documents(args.num_documents + args.num_validation_documents, args.seed)
    for name, count in (("train.txt", args.num_documents), ("validation.txt", args.num_validation_documents)):
        if count:
            write_text_atomically(output_dir / name, (f"{document}\n\n" for document in islice(documents, count)))
            logger.info(f"Wrote {count} documents to {output_dir / name}.")
    if args.num_classification_samples:
        rows = generate_classification(args.num_classification_samples, args.seed)
        path = output_dir / "classification_train.jsonl"
        write_text_atomically(path, (json.dumps(row) + "\n" for row in rows))
        logger.info(f"Wrote {len(rows)} rows to {path}.")


if __name__ == "__main__":
    run_script(main)
