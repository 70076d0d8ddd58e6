#!/usr/bin/env python3
"""Compares the tokenizers with their oracles on many random strings.

  python tools/fuzz_tokenizer.py --binary build/release/tests/tokenizer_tests [--count 100000] [--seed 1]
      [--vocabulary FAMILY=FILE.gguf ...] [--families spm,smollm,...] [--train 8000] [--summary OUT.md]

For each family the strings and the oracle's ids go to a temporary folder and the test program compares: ids, the way back
byte for byte, the streamed pieces, and the words that the pre-tokenizer cuts. Families without --vocabulary get one of
--train tokens, trained on the family's published pre-tokenizer. Exit status 1 on any mismatch.
"""
import argparse
import os
import subprocess
import sys
import tempfile
import time

import golden_tokenizer as golden

FAMILIES = ["spm"] + golden.BPE_FAMILIES


def every_code_point(binary, families):
    """Each code point within letters, behind a space, before digits and before a newline."""
    points = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    texts = ["".join(f"a{chr(c)}b {chr(c)}1{chr(c)}\n" for c in points[i:i + 32]) for i in range(0, len(points), 32)]
    status = 0
    for family in families:
        with tempfile.TemporaryDirectory() as folder:
            file = os.path.join(folder, "cases.bin")
            golden.write_cases(file, golden.split_cases(family, texts))
            run = subprocess.run([binary, f"--family={family}", f"--splits={file}"], capture_output=True, text=True)
            print(f"{family}: every code point, {len(points)}: {run.stdout.strip().splitlines()[-1]}", flush=True)
            status |= run.returncode
    return status


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", required=True)
    parser.add_argument("--count", type=int, default=100000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--families", default=",".join(FAMILIES))
    parser.add_argument("--vocabulary", action="append", default=[], metavar="FAMILY=FILE")
    parser.add_argument("--train", type=int, default=8000)
    parser.add_argument("--summary")
    parser.add_argument("--every-code-point", action="store_true",
                        help="only compare the words of strings that hold every code point in several places")
    args = parser.parse_args()
    given = dict(v.split("=", 1) for v in args.vocabulary)
    if args.every_code_point:
        return every_code_point(args.binary, [f for f in args.families.split(",") if f != "spm"])
    rows, failed = [], False
    for family in args.families.split(","):
        with tempfile.TemporaryDirectory() as folder:
            path = given.get(family)
            label = os.path.basename(path) if path else f"trained, {args.train} tokens"
            if path is None:
                path = os.path.join(folder, family + ".gguf")
                if family == "spm":
                    golden.train_spm(args.train, os.path.join(folder, "spm.model"), path, args.seed)
                else:
                    golden.train_bpe(family, args.train, path, args.seed)
            oracle = golden.oracle_of_gguf(path, family)
            strings = golden.Strings(args.seed, oracle.inserted)
            texts = [strings.next(i) for i in range(args.count)]
            # Every tenth string that has a special token in it is also read with special tokens as plain characters.
            plain = [t for t in texts if any(s in t for s in strings.special)][::10]
            cases = golden.make_cases(oracle, texts, True) + golden.make_cases(oracle, plain, False)
            file = os.path.join(folder, "cases.bin")
            golden.write_cases(file, cases)
            runs = [[f"--vocabulary={path}", f"--family={family}", f"--cases={file}"]]
            if family != "spm":
                golden.write_cases(file + ".split", golden.split_cases(family, texts))
                runs.append([f"--family={family}", f"--splits={file}.split"])
            begin = time.time()
            last = []
            for arguments in runs:
                run = subprocess.run([args.binary] + arguments, capture_output=True, text=True)
                failed = failed or run.returncode != 0
                last.append((run.stdout.strip().splitlines() or ["no output"])[-1])
                if run.returncode != 0:
                    print(run.stdout[-3000:], run.stderr[-1000:])
            last = "; words: ".join(last)
            print(f"{family} ({label}, {oracle.name}): {last}; {time.time() - begin:.1f} s", flush=True)
            special = sum(any(s in t for s in strings.special) for t in texts)
            size = sum(len(t.encode()) for t in texts)
            rows.append(f"| {family} | {label} | {len(oracle.pieces)} | {oracle.name} | {len(cases)} | {special} | "
                        f"{size / 1e6:.1f} | {last} |")
    if args.summary:
        with open(args.summary, "a") as out:
            out.write("\n".join(rows) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
