"""Made-up support tickets of three urgencies, from templates and a seed. No text is from anywhere else.

What happened makes the urgency, not the tone: urgent tickets may be polite and calm, low ones angry and in capitals. The three
share their vocabulary ("down", "all customers", "data", "today"), so that no single word tells them apart.
"""

from __future__ import annotations

import random
from typing import NamedTuple

URGENCIES = ("low", "normal", "urgent")
SHARES = (0.40, 0.57, 0.03)


class Ticket(NamedTuple):
    """A text and its urgency."""

    text: str
    urgency: str


SLOTS = {
    "product": ("the shop", "the booking app", "the portal", "the warehouse system", "the till software", "the intranet",
                "the mobile app", "the billing system", "the patient calendar", "the reporting tool"),
    "team": ("our sales team", "the night shift", "our accountants", "the Leeds office", "the warehouse crew",
             "our front desk", "the whole support team", "our trainees"),
    "who": ("a colleague", "one customer", "our new hire", "my manager", "a supplier", "one of our drivers"),
    "page": ("the settings page", "the invoice list", "the login page", "the order form", "the monthly report",
             "the dashboard", "the search page", "the profile page"),
    "time": ("this morning", "about an hour ago", "last night", "Monday", "yesterday", "the update", "nine o'clock"),
    "item": ("the March invoice", "order 4471", "the delivery note", "the stock list", "the price list", "a refund"),
}  # fmt: skip

PROBLEMS = {
    "urgent": (
        "{product} has been down for all customers since {time} and no orders come in",
        "since {time} nobody can log in to {product}, not even the administrators",
        "every card payment has failed since {time}; people leave without paying",
        "all records of {team} disappeared from {product} and the backup is empty too",
        "customers see the names and bank details of other customers on {page}",
        "someone we do not know has logged in as administrator and is deleting accounts",
        "{product} charges every customer twice since {time} and it is still going on",
        "we found our whole customer table on a public website, passwords included",
        "the server room smells of smoke and {product} has stopped answering",
        "{team} cannot ship anything, the labels for all parcels come out blank",
        "the medication doses in {product} are shown for the wrong patients",
        "a message on all our screens asks for money to unlock our files",
        "{product} stands still at all our sites and trucks are waiting at the gate",
        "emergency calls are no longer put through to {team} since {time}",
        "an old staff account is sending our contracts to an address abroad right at this moment",
        "salaries go out at noon and {product} has replaced all account numbers by zeros",
        "the database runs full in about an hour and then {product} stops for everybody",
        "the alarm of the cold store no longer reports to {product} and vaccines are in there",
    ),
    "normal": (
        "{who} cannot log in to {product} since {time}, the others can",
        "{page} takes about a minute to load since {time}, but it works",
        "{item} shows the wrong amount and has to be corrected this week",
        "one card payment failed {time}; on the second try it went through",
        "{who} was charged twice for {item} and asks for the money back",
        "the export of {page} leaves out the last column for {team}",
        "{product} logs {team} out every half hour and they have to sign in each time",
        "we need two more accounts for {team} by the end of the month",
        "the printer at our desk prints {item} twice, the one next to it works",
        "mails from {product} to {who} end up in the spam folder",
        "{product} was down for ten minutes {time}; it is back, we would like to know the cause",
        "the address of {who} cannot be changed on {page}, saving gives an error",
        "the totals of {item} and of {page} differ by a few pounds",
        "{who} deleted {item} by mistake, can you restore it from the backup",
        "the stock of one article is wrong in {product} since {time}",
        "notifications of {product} arrive some hours late for {team}",
        "{who} has left and the account should be closed by Friday",
        "the discount code for {team} is refused at the last step of {page}",
        "uploading a photo to {page} fails when the file is larger than five megabytes",
        "the password of {who} has run out and the reset mail does not come",
    ),
    "low": (
        "there is a spelling mistake at the bottom of {page}",
        "it would be nice if {product} had a dark theme",
        "the logo on {page} looks a little blurred on my screen",
        "how can I change the language of {product} back to English",
        "could {page} remember the order of columns next time",
        "the payment you lost last year has turned up, so you can close that ticket",
        "I want to say that {product} has worked well for all customers since {time}",
        "is there a manual of {product} that {team} could read",
        "the green of the buttons on {page} is hard to tell from the blue",
        "which plan would you suggest if {team} grows next year",
        "the outage from last month is long over, please take the banner off {page}",
        "please add our new phone number to {page} when you update it anyway",
        "what do the small numbers next to {item} mean",
        "the date on {page} should have the day first, as we write it here",
        "I think the security question about my first pet is a silly one",
        "could the newsletter of {product} come once a month instead of each week",
        "{who} asks if there will be an online course on {product} in spring",
        "the sound when a new order comes in is awful, a bell would be nicer",
        "our company name has a hyphen, {page} shows it without one",
        "is the data of {product} stored here or abroad? Our auditor would like to know at some point",
    ),
}

OPENERS = {
    "polite": ("Hello, I hope you are well.", "Good morning and thank you for your help so far.", "Dear team,",
               "Hi there, sorry to bother you.", "Hello, I am not sure if this is the right address.", "Good afternoon,"),
    "plain": ("", "Hi,", "Ticket from the branch:", "Note for support:", "Hello,", ""),
    "angry": ("THIS IS UNACCEPTABLE.", "I am really fed up by now!", "URGENT!!!", "How often must I write to you?",
              "Third time I report this, nobody cares.", "Seriously?!"),
}  # fmt: skip
CLOSERS = {
    "polite": ("Whenever you have a moment.", "No hurry with the answer, I know you are busy.", "Many thanks in advance.",
               "Thank you so much, kind regards.", "I would be grateful for a short reply.", "Have a lovely day."),
    "plain": ("", "Regards", "Please advise.", "Thanks.", "We use the latest version.", ""),
    "angry": ("FIX THIS IMMEDIATELY.", "I expect an answer today!", "Otherwise we cancel the contract.",
              "This is a disaster.", "I want to speak to your manager now.", "ASAP please!!"),
}  # fmt: skip
TONES = {"low": (0.40, 0.30, 0.30), "normal": (0.35, 0.40, 0.25), "urgent": (0.45, 0.40, 0.15)}
"""How often a ticket of each urgency is polite, plain or angry."""
ASIDES = (
    "", "", "", "", "We are a small company with two sites.", "I have tried another browser.", "I could not find it in the help.",
    "My colleague told me to write to you.", "It is the same on my phone.", "All customers here like the product otherwise.",
    "Nothing is down as far as I can see.", "We restarted the computer twice.", "The data is from this year.",
)  # fmt: skip


def ticket(urgency: str, generator: random.Random) -> Ticket:
    """One ticket."""
    problem = generator.choice(PROBLEMS[urgency]).format(
        **{name: generator.choice(choices) for name, choices in SLOTS.items()}
    )
    (tone,) = generator.choices(tuple(OPENERS), TONES[urgency])
    parts = [
        generator.choice(OPENERS[tone]), f"{problem[0].upper()}{problem[1:]}.", generator.choice(ASIDES),
        generator.choice(CLOSERS[tone]),
    ]  # fmt: skip
    return Ticket(" ".join(part for part in parts if part), urgency)


def tickets(
    count: int, seed: int, *, least: int = 0, most: int | None = None, without: frozenset[str] = frozenset()
) -> list[Ticket]:
    """`count` different tickets in the usual shares, `least` to `most` of them urgent; none has a text of `without`."""
    generator = random.Random(seed)
    while True:
        urgencies = generator.choices(URGENCIES, SHARES, k=count)
        urgent = urgencies.count("urgent")
        if urgent >= least and (most is None or urgent <= most):
            break
    texts, rows = set(without), []
    for urgency in urgencies:
        row = ticket(urgency, generator)
        while row.text in texts:
            row = ticket(urgency, generator)
        texts.add(row.text)
        rows.append(row)
    return rows
