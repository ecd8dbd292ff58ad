"""A small grammar of everyday Dutch: a template's slots are filled so that gender, number and inflection agree."""

import re
from itertools import cycle
from random import Random

# Two templates lack their closing quotation mark, as sentences of Common Voice do: readers must take tables raw.
TEMPLATES = (
    "{name} koopt {few} {food} op de markt.",
    "Om {hour} uur gaat {name} naar {place}.",
    "Kun je {few} {food} meenemen?",
    "De {pet} slaapt in de {room}.",
    "Mijn {relative} woont al {many} jaar in {city}.",
    "Op {day} ga ik met {name} naar {city}.",
    "Het regent {when} in {city}.",
    "Wie heeft mijn {color} {thing} gezien?",
    "Mag ik een glas {drink}, alstublieft?",
    "De trein naar {city} vertrekt om {hour} uur.",
    "{name} drinkt elke ochtend {few} koppen koffie.",
    "Mijn {relative} is {many} jaar oud.",
    "Dat kost {many} euro, mevrouw {surname}.",
    "De {color} {thing} van {name} is kapot.",
    "Wij eten {when} {meal}.",
    "'s Avonds leest {name} een boek over {topic}.",
    "Bel {name} even als de trein te laat is.",
    '{name} zei: "tot {day} in {city}.',
    '"Waar is {name}? vroeg mijn {relative}.',
    "Ik heb {few} {food} in mijn tas.",
    "Het boek over {topic} telt {many} bladzijden.",
    "Zet de {color} {thing} in de {room}.",
    "Meneer {surname} heeft {few} kinderen en een {pet}.",
    "Hoe laat komt {name} op {day} thuis?",
    "Onze {relative} {hobby}.",
    "In {city} wonen veel vrienden van {name}.",
    "{name} en {friend} wachten bij {place}.",
    "Er staan {few} stoelen in de {room}.",
    "Ik ben op {day} jarig en word {many}.",
    "Neem de bus van {hour} uur naar {city}.",
    "De winkel in {city} is op {day} gesloten.",
    "Wil je {drink} of {hot} bij het eten?",
    "Mijn {relative} heeft een {color} {thing} gekocht.",
    "De dokter belt {name} om {hour} uur terug.",
    "{name} vond {few} euro bij {place}.",
    "Doe de deur van de {room} dicht, {name}.",
    "Vergeet je {color} {thing} niet, {name}!",
    "Het is {when} koud in de {room}.",
    "Mevrouw {surname} {hobby}.",
    "Ik drink {when} liever {hot} met {friend}.",
)
SLOTS = {
    "name": "Anna Bram Daan Emma Femke Jasper Koen Lotte Maarten Pieter Sanne Willem".split(),
    "friend": "Fleur Gijs Hanneke Joris Marieke Ruben".split(),
    "surname": "Bakker Jansen Mulder Smit Visser Vos".split(),
    "few": "twee drie vier vijf zes zeven acht negen tien".split(),
    "many": (
        "elf twaalf dertien vijftien achttien twintig eenentwintig vierendertig zesenveertig vijftig "
        "zevenenvijftig achtenzestig tachtig negenennegentig honderd"
    ).split(),
    "hour": "twee drie vier vijf zes zeven acht negen tien elf twaalf".split(),
    "day": "maandag dinsdag woensdag donderdag vrijdag zaterdag zondag".split(),
    "when": "vandaag vanavond vanmiddag vannacht morgen".split(),
    "city": "Amsterdam Antwerpen Arnhem Gent Groningen Leiden Maastricht Rotterdam Utrecht Zwolle".split(),
    "place": ["de bakker", "de brug", "de bushalte", "de kerk", "het museum", "het station", "het strand"],
    "room": "gang keuken schuur slaapkamer tuin woonkamer".split(),
    "relative": "broer moeder neef nicht oma oom opa tante vader zus".split(),
    "pet": "hond kat poes".split(),
    "food": "aardappelen appels bananen broodjes citroenen eieren peren tomaten wortels".split(),
    "meal": ["aardappelen met vis", "pannenkoeken met stroop", "pasta met kaas", "rijst met kip", "soep met brood"],
    "drink": "appelsap bier limonade melk water wijn".split(),
    "hot": "chocolademelk koffie thee".split(),
    "color": "blauwe bruine gele groene rode witte zwarte".split(),
    "thing": "fiets jas paraplu sjaal tas trui".split(),
    "topic": ["de zee", "dieren", "het bos", "koken", "muziek", "sterren"],
    "hobby": [
        "fietst elke dag naar het werk",
        "speelt graag piano",
        "tekent mooie bloemen",
        "zingt in een koor",
        "zwemt elke week",
    ],
}


def draw_sentences(count: int, rng: Random) -> list[str]:
    """`count` different sentences in random order, every template used as often as the others where it can be."""
    sentences: dict[str, None] = {}
    templates = cycle(TEMPLATES)
    while len(sentences) < count:
        filled = re.sub(r"{(\w+)}", lambda slot: rng.choice(SLOTS[slot[1]]), next(templates))
        sentences.setdefault(filled)
    shuffled = list(sentences)
    rng.shuffle(shuffled)
    return shuffled
