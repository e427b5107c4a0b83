"""Tasks for lm-eval without downloads: questions with choices, last words, and passages."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

TASKS = ("own_choices", "own_last_words", "own_passages")

# Question | right answer | wrong answers; the right one's place changes from line to line.
CHOICES = """\
The capital of France is|Paris|Madrid|Oslo|Vienna
The capital of Japan is|Tokyo|Beijing|Seoul|Bangkok
The capital of Italy is|Rome|Milan|Lisbon|Athens
The largest planet of the solar system is|Jupiter|Mars|Venus|Mercury
The planet closest to the Sun is|Mercury|Neptune|Saturn|Earth
Water is made of hydrogen and|oxygen|carbon|iron|helium
The chemical symbol of gold is|Au|Ag|Fe|Pb
Plants take from the air the gas|carbon dioxide|helium|methane|argon
At sea level, water boils at a temperature of|100 degrees Celsius|20 degrees Celsius|\
500 degrees Celsius|0 degrees Celsius
A week has|seven days|five days|nine days|twelve days
A triangle has|three sides|four sides|six sides|no sides
Two plus two is|four|five|seven|nine
Nine minus four is|five|six|thirteen|two
Three times three is|nine|six|twelve|one
Ten divided by two is|five|eight|twelve|twenty
Half of one hundred is|fifty|ten|seventy|two hundred
The next number after 2, 4, 6, 8 is|10|9|16|3
An hour has|sixty minutes|ten minutes|one hundred minutes|six minutes
One kilometre is the same as|1000 metres|10 metres|60 metres|5 metres
The opposite of hot is|cold|warm|red|loud
The opposite of early is|late|soon|fast|tall
A young dog is called a|puppy|kitten|calf|lamb
A young cat is called a|kitten|puppy|foal|chick
Bees make|honey|milk|wool|bread
A doctor who looks after teeth is called a|dentist|pilot|baker|plumber
To cut paper, most people use|scissors|a spoon|a pillow|a ladder
When it rains, people often carry an|umbrella|anchor|oven|orchestra
She was thirsty, so she drank a glass of|water|sand|paper|shoes
He was tired after the long day, so he went to|bed|war|Mars|breakfast
The baker takes the bread out of the|oven|river|piano|wallet
The fisherman threw his net into the|sea|fire|sky|library
Before crossing the street, look left and|right|purple|yesterday|wrong
The hunter followed the tracks of the deer in the|snow|soup|mirror|radio
The author of Romeo and Juliet is|William Shakespeare|Isaac Newton|Marie Curie|Mozart
The law of gravity is connected with the name of|Isaac Newton|Jane Austen|Picasso|Beethoven
The language spoken in Brazil is|Portuguese|German|Swedish|Korean
The currency of the United States is the|dollar|yen|pound|krone
The colour of fresh grass is|green|blue|pink|grey
In Python, the keyword that defines a function is|def|int|goto|switch
The first month of the year is|January|June|April|October
"""

LAST_WORDS = """\
The sun rises in the east and sets in the west
My brother plays the guitar and my sister plays the piano
We put the letter into an envelope and wrote the address on the front
The cat chased the mouse, but the mouse ran away from the cat
He opened the door with a key, and when he left he locked it with the same key
On Monday we work, on Saturday and on Sunday we rest
She counted slowly: one, two, three, four, five, six, seven
The teacher asked a question, and the pupil gave the right answer
In winter it is cold, and in summer it is hot
The king and the queen lived in a castle
The ship left the harbour and sailed out to sea
Once upon a time there was a little girl who lived in a small house at the edge of the forest
The train was late, so the passengers had to wait at the station
He wanted to buy a book, so he went to the shop
They planted a tree in the garden, and after some years it bore fruit
The moon moves around the Earth, and the Earth moves around the Sun
"""

PASSAGES = [
    "The lighthouse stood at the end of the long pier. Every evening the keeper climbed the two "
    "hundred steps, lit the lamp, and watched the ships go by. In all his years he had never "
    "missed a night, and he did not mean to begin now.",
    "Bread needs four things: flour, water, salt and time. Mix the first three, knead them well, "
    "and wait. The dough will rise slowly in a cool kitchen and quickly in a warm one.",
    "Prime numbers have no divisors except one and themselves. There are infinitely many of them: "
    "multiply any list of primes, add one, and the result has a prime divisor outside the list.",
    "Die Stra\u00dfe war leer, nur ein alter Mann ging langsam \u00fcber den Platz. "
    "\u4e16\u754c\u304c\u7d42\u308f\u308b\u3002 \U0001f642 \u2014 na\u00efve caf\u00e9.",
]
"""The last one is of tokens that are pieces of characters."""

_METRICS = {
    "own_choices": ("acc", "acc_norm"),
    "own_last_words": ("acc", "perplexity"),
    "own_passages": ("bits_per_byte", "word_perplexity"),
}

_YAML = {
    "own_choices": """\
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
""",
    "own_last_words": """\
output_type: loglikelihood
doc_to_text: "{{text.split(' ')[:-1]|join(' ')}}"
doc_to_target: "{{' '+text.split(' ')[-1]}}"
""",
    "own_passages": """\
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
""",
}


def documents(task: str) -> list[dict[str, object]]:
    """What a task asks."""
    if task == "own_last_words":
        return [{"text": line} for line in LAST_WORDS.splitlines()]
    if task == "own_passages":
        return [{"text": text} for text in PASSAGES]
    questions: list[dict[str, object]] = []
    for number, line in enumerate(CHOICES.splitlines()):
        question, *choices = line.split("|")
        place = number % len(choices)
        choices.insert(place, choices.pop(0))
        questions.append({"question": question, "choices": choices, "answer": place})
    return questions


def write_tasks(folder: Path) -> None:
    """A YAML file and a JSONL file for each of `TASKS`."""
    for task in TASKS:
        data = folder / f"{task}.jsonl"
        data.write_text("".join(json.dumps(document) + "\n" for document in documents(task)))
        metrics = "".join(f"  - metric: {metric}\n" for metric in _METRICS[task])
        (folder / f"{task}.yaml").write_text(
            f"task: {task}\n"
            "dataset_path: json\n"
            f"dataset_kwargs: {{data_files: {{test: {json.dumps(str(data))}}}}}\n"
            "test_split: test\n"
            f"{_YAML[task]}"
            f"metric_list:\n{metrics}"
            "metadata: {version: 1.0}\n"
        )
