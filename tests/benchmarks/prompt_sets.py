"""Makes the shipped sets by kind and the shipped questions from their sources, byte by byte the same.

Run with ``python -m tests.benchmarks.prompt_sets --sources FOLDER``: the folder holds ``gutenberg/subset.jsonl``,
``gsm8k/train.jsonl``, ``gsm8k/test.jsonl``, ``hellaswag/subset.jsonl`` and ``mt_bench/question.jsonl``. The
answers of the chats are the bundled model's own, greedy in full precision; they are kept as they are in
``chat.jsonl`` unless ``--answers`` asks for new ones, which takes minutes and may differ by a word between machines.
"""

import argparse
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

from kvtuner_core.services.prompts import PROMPT_FOLDER
from kvtuner_core.services.question_files import TASK_FOLDER
from kvtuner_core.services.recall import RecallSpec, recall_questions

SETS = ("prose", "maths", "chat", "retrieval", "retrieval-calibration")
TASKS = ("multiple-choice", "exact-match")
TEST_BOOKS = ("sherlock", "frankenstein", "time_machine")
RECALL = RecallSpec(count=24, pairs=32, seed=2026)
RECALL_CALIBRATION = RecallSpec(count=24, pairs=32, seed=1)

_COUNT = 12
_PASSAGE = 6000
_SHOTS = 3
_FIRST_TURN = 192
_SECOND_TURN = 64
_MARK = re.compile(r"<<[^>]*>>")


def rows(path):
    """The objects of a ``.jsonl`` file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def below(rng, limit):
    """A whole number below ``limit``; only `random.Random.random` is promised to stay the same."""
    return int(rng.random() * limit)


def shuffled(values, seed):
    """Some values in the order of a seed."""
    left, rng = list(values), random.Random(seed)
    return [left.pop(below(rng, len(left))) for _ in range(len(left))]


def used(name):
    """Source items of a shipped set."""
    return {source for row in rows(PROMPT_FOLDER / f"{name}.jsonl") for source in row["source"]}


def prose(sources):
    """Passages of the test books, out of stretches that the evaluation set does not use."""
    taken = used("evaluation")
    found = {book: [] for book in TEST_BOOKS}
    for row in rows(sources / "gutenberg" / "subset.jsonl"):
        source = f"gutenberg/{row['id']}"
        if row["book"] in found and source not in taken:
            found[row["book"]].append({"text": passage(row["text"]), "source": [source]})
    return [found[book][number] for number in range(_COUNT // len(TEST_BOOKS)) for book in TEST_BOOKS]


def passage(text):
    """From the first paragraph that begins in the text's first part, up to the end of a sentence."""
    start = text.find("\n\n", 0, 2000)
    text = text[start + 2 if start >= 0 else 0 :][:_PASSAGE]
    return text[: max(text.rfind(end) for end in (". ", ".\n", "! ", "? ")) + 1]


def solution(answer):
    """A solution of GSM8K in words, and its number."""
    steps, _, number = answer.partition("####")
    number = number.strip().replace(",", "")
    return f" {_MARK.sub('', steps).strip()}\nThe answer is {number}.", number


def solved(item):
    """A question with its solution."""
    return f"Question: {item['question']}\nAnswer:{solution(item['answer'])[0]}\n\n"


def maths(sources):
    """Solved questions of the test split and one more, its solution to be scored."""
    items = rows(sources / "gsm8k" / "test.jsonl")
    taken = used("evaluation") | {row["source"][0] for row in exact_match(sources)}
    order = [index for index in shuffled(range(len(items)), "maths") if f"gsm8k/test/{index}" not in taken]
    last = [index for index in order if len(solution(items[index]["answer"])[0]) >= 300][:_COUNT]
    rest = iter(index for index in order if index not in last)
    for index in last:
        shots, text = [], ""
        while len(text) < 3000:
            shots.append(next(rest))
            text += solved(items[shots[-1]])
        yield {
            "prompt": f"{text}Question: {items[index]['question']}\nAnswer:",
            "completion": solution(items[index]["answer"])[0],
            "source": [f"gsm8k/test/{number}" for number in (*shots, index)],
        }


def exact_match(sources):
    """Questions of GSM8K's test split after a few solved ones of its train split that nothing else uses."""
    train, test = (rows(sources / "gsm8k" / f"{split}.jsonl") for split in ("train", "test"))
    calibration, evaluation = used("calibration"), used("evaluation")
    shots = [n for n in shuffled(range(len(train)), "shots") if f"gsm8k/train/{n}" not in calibration][:_SHOTS]
    head = "".join(solved(train[index]) for index in shots)
    order = [n for n in shuffled(range(len(test)), "exact-match") if f"gsm8k/test/{n}" not in evaluation][:100]
    for index in order:
        text, number = solution(test[index]["answer"])
        yield {
            "prompt": f"{head}Question: {test[index]['question']}\nAnswer:",
            "answer": number,
            "solution": text,
            "stop": "\n\n",
            "max_new_tokens": 256,
            "source": [f"gsm8k/test/{index}", *(f"gsm8k/train/{number}" for number in shots)],
        }


def multiple_choice(sources):
    """Completions of HellaSwag, as they come."""
    for row in rows(sources / "hellaswag" / "subset.jsonl")[:200]:
        choices = [f" {choice}" for choice in row["choices"]]
        answer = choices[row["label"]]
        yield {"prompt": row["context"], "answer": answer, "choices": choices, "source": [f"hellaswag/{row['id']}"]}


def retrieval(spec=RECALL):
    """Recall questions of the seed, cut so that the first token that is scored reads the quantised list."""
    for number, question in enumerate(recall_questions(spec)):
        yield {
            "prompt": question.prompt.removesuffix(":"),
            "completion": f":{question.answer}",
            "source": [f"recall/{spec.seed}/{number}"],
        }


def chat(sources, answers):
    """Two turns of a user with a model's answers between and after them.

    Args:
        sources: Folder of the sources.
        answers: Yields two answers to each conversation's turns.
    """
    questions = rows(sources / "mt_bench" / "question.jsonl")
    chosen = [questions[number * len(questions) // _COUNT] for number in range(_COUNT)]
    for row, (first, second) in zip(chosen, answers([item["turns"] for item in chosen]), strict=True):
        yield {
            "prompt": f"User: {row['turns'][0]}\n\nAssistant: {first}\n\nUser: {row['turns'][1]}\n\nAssistant:",
            "completion": f" {second}",
            "source": [f"mt_bench/{row['question_id']}"],
        }


def kept_answers(turns) -> Iterator[tuple[str, str]]:
    """The answers that are shipped."""
    for (one, two), row in zip(turns, rows(PROMPT_FOLDER / "chat.jsonl"), strict=True):
        first = row["prompt"].removeprefix(f"User: {one}\n\nAssistant: ").removesuffix(f"\n\nUser: {two}\n\nAssistant:")
        yield first, row["completion"].removeprefix(" ")


def new_answers(turns) -> Iterator[tuple[str, str]]:
    """The bundled model's answers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from kvtuner_core.runtime.references import bundled_model_path

    path = bundled_model_path()
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()

    tokenizer.padding_side = "left"

    def answer(conversations, most):
        texts = [
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            for messages in conversations
        ]
        batch = tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt")
        out = model.generate(**batch, max_new_tokens=most, do_sample=False, pad_token_id=tokenizer.eos_token_id)
        new = out[:, batch.input_ids.shape[1] :]
        return [text.strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)]

    conversations = [[{"role": "user", "content": one}] for one, _ in turns]
    firsts = answer(conversations, _FIRST_TURN)
    for messages, first, (_, two) in zip(conversations, firsts, turns, strict=True):
        messages += [{"role": "assistant", "content": first}, {"role": "user", "content": two}]
    return zip(firsts, answer(conversations, _SECOND_TURN), strict=True)


def write(path, found):
    """Write a ``.jsonl`` file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found), encoding="utf-8")
    print(f"{path.name}: {path.stat().st_size} bytes")


def build(sources, prompts, tasks, *, answers=kept_answers):
    """Write all files.

    Args:
        sources: Folder of the sources.
        prompts: Folder of the prompt sets.
        tasks: Folder of the questions.
        answers: Gives the answers of the chats.
    """
    write(prompts / "prose.jsonl", prose(sources))
    write(tasks / "exact-match.jsonl", exact_match(sources))
    write(prompts / "maths.jsonl", maths(sources))
    write(prompts / "retrieval.jsonl", retrieval())
    write(prompts / "retrieval-calibration.jsonl", retrieval(RECALL_CALIBRATION))
    write(tasks / "multiple-choice.jsonl", multiple_choice(sources))
    write(prompts / "chat.jsonl", list(chat(sources, answers)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sources", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--answers", action="store_true", help="let the bundled model answer the chats anew")
    given = parser.parse_args()
    build(given.sources, PROMPT_FOLDER, TASK_FOLDER, answers=new_answers if given.answers else kept_answers)
