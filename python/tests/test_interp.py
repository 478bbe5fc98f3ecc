"""The reader against pyarrow, polars and the command line's own JSON."""

import json
import os
import subprocess
import tempfile
import unittest
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

import interp
from interp import Dataset, binary

PROMPT = "When Mary and John went to the shop, John gave a drink to"


class Reading(unittest.TestCase):
    def setUp(self):
        self.dir = Path(self.enterContext(tempfile.TemporaryDirectory())) if hasattr(self, "enterContext") else Path(tempfile.mkdtemp())

    def test_a_run_has_the_rows_of_the_command_line(self):
        run = interp.run("lens", "--prompt", PROMPT, out=self.dir / "lens")
        said = subprocess.run(
            [binary(), "lens", "--prompt", PROMPT, "--format", "json", "--out", self.dir / "again"],
            capture_output=True, text=True, check=True, encoding="utf-8",
        ).stdout
        said = json.loads(said)
        self.assertEqual(run.frame.num_rows, len(said["rows"]))
        for found, wanted in zip(run.frame.to_pylist(), said["rows"]):
            self.assertEqual(set(found), set(wanted))
            self.assertEqual(found["next"], wanted["next"])
            self.assertAlmostEqual(found["logit"], wanted["logit"], places=5)
        self.assertEqual(run.meta["model"]["weights_sha256"], said["run"]["model"]["weights_sha256"])
        self.assertIn("<svg", run._repr_mimebundle_()["image/svg+xml"])

    def test_other_frames_are_there_too(self):
        run = interp.run("report", "--prompt", PROMPT, out=self.dir / "report")
        self.assertEqual(set(run.frames), {"frame", "lens", "attention", "attribution", "neurons"})

    def test_a_dataset_has_the_numbers_of_a_wide_capture(self):
        texts = self.dir / "texts.txt"
        texts.write_text("\n".join([PROMPT, "The key near the doors is", "x"]) + "\n", encoding="utf-8")
        data = interp.run("export", "--site", "z.0,resid_post.2", "--file", str(texts), "--part-rows", "9", out=self.dir / "data")
        captured = interp.run("capture", "--wide", "--site", "z.0,resid_post.2", "--file", str(texts), out=self.dir / "wide")
        self.assertGreater(len(data.parts), 1)
        self.assertEqual((len(data), list(data.arrays)), (captured.frame.num_rows, ["z.0", "resid_post.2"]))
        for site, array in data.arrays.items():
            np.testing.assert_allclose(array, captured.arrays[site], atol=1e-5)
            np.testing.assert_array_equal(np.concatenate(list(data.batches(site, rows=3))), array)
        self.assertEqual(data.frame["token"].to_pylist(), captured.frame["token"].to_pylist())
        data.verify()
        data.parts[0].write_bytes(data.parts[0].read_bytes()[:-1] + b"x")
        for use in (Dataset.verify, lambda data: data.frame, lambda data: data.arrays["z.0"]):
            with self.assertRaisesRegex(ValueError, "sha256 is"):
                use(interp.load(self.dir / "data"))

    def test_a_manifest_that_lies_is_refused(self):
        texts = self.dir / "texts.txt"
        texts.write_text("\n".join([PROMPT, "The key near the doors is"]) + "\n", encoding="utf-8")
        where = self.dir / "data"
        interp.run("export", "--site", "z.0", "--file", str(texts), "--part-rows", "9", out=where)
        outside = self.dir / "outside.parquet"
        outside.write_bytes((where / "part-00000.parquet").read_bytes())
        manifest, plan = where / "manifest.json", where / "plan.json"
        sealed, planned = manifest.read_text(encoding="utf-8"), plan.read_text(encoding="utf-8")

        def change(part, **fields):
            value = json.loads(sealed)
            value["parts"][part] |= fields
            manifest.write_text(json.dumps(value), encoding="utf-8")

        for name in ("../outside.parquet", str(outside), "part-00001.parquet", "part-0.parquet", "", ".", "a\\b", "a\0b", None, 7):
            change(0, file=name)
            with self.assertRaisesRegex(ValueError, "no file beside it|as part 0", msg=name):
                interp.load(where)
        for fields in ({"rows": -1}, {"rows": 1}, {"rows": "9"}, {"bytes": -1}, {"bytes": 1.5}, {"sha256": 1}, {"rows": True}):
            change(0, **fields)
            with self.assertRaises(ValueError, msg=fields):
                interp.load(where)
        for fields, words in (({"bytes": 7}, "bytes instead of 7"), ({"sha256": "0" * 64}, "sha256 is")):
            change(0, **fields)
            with self.assertRaisesRegex(ValueError, words):
                interp.load(where).arrays["z.0"]
        manifest.write_text("[" * 100_000, encoding="utf-8")
        with self.assertRaisesRegex(ValueError, "no JSON"):
            interp.load(where)
        manifest.write_text(sealed, encoding="utf-8")
        plan.write_text(planned.replace("z.0", "z.1"), encoding="utf-8")
        with self.assertRaisesRegex(ValueError, "do not belong together"):
            interp.load(where)
        plan.write_text(planned, encoding="utf-8")
        part = where / "part-00000.parquet"
        part.unlink()
        part.symlink_to(outside)
        with self.assertRaisesRegex(ValueError, "is a link"):
            interp.load(where).frame
        part.unlink()
        os.mkfifo(part)
        with self.assertRaisesRegex(ValueError, "no regular file"):
            interp.load(where).frame

    def test_offsets_of_tensors_are_checked(self):
        def tensors(entry, data=b"12345678", size=None):
            header = json.dumps({"x": entry}).encode()
            path = self.dir / "x.safetensors"
            path.write_bytes((len(header) if size is None else size).to_bytes(8, "little") + header + data)
            return interp.read_safetensors(path)

        good = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
        self.assertEqual(tensors(good)["x"].shape, (2,))
        self.assertEqual(tensors(good | {"dtype": "U64", "shape": [1]})["x"].dtype, np.uint64)
        self.assertEqual(tensors(good | {"shape": [0], "data_offsets": [8, 8]})["x"].size, 0)
        for wrong in (
            {"data_offsets": [-8, 0]}, {"data_offsets": [-16, -8]}, {"data_offsets": [8, 0]}, {"data_offsets": [8, 16]},
            {"data_offsets": [0, 1 << 62]}, {"data_offsets": [0.0, 8.0]}, {"data_offsets": [0]}, {"data_offsets": None},
            {"shape": [-2]}, {"shape": [1 << 62, 4]}, {"shape": [3]}, {"shape": "2"}, {"shape": [True, 2]}, {"dtype": "BF16"},
            {"dtype": ["F32"]},
        ):  # fmt: skip
            with self.assertRaises(ValueError, msg=wrong):
                tensors(good | wrong)
        for size in (1 << 62, 10_000, 3):
            with self.assertRaises(ValueError, msg=size):
                tensors(good, size=size)
        with self.assertRaises(ValueError):
            tensors([1])

    def test_labels_and_packed_documents_come_with_the_frame(self):
        texts = self.dir / "texts.jsonl"
        rows = [{"text": text, "id": 2**53 + i, "kind": kind} for i, (text, kind) in enumerate([("Mary and John", "a"), ("the shop", "b")])]
        texts.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        data = interp.run("export", "--site", "z.0", "--file", str(texts), "--label", "id,kind", out=self.dir / "data")
        for row in data.frame.to_pylist():
            self.assertEqual((row["id"], row["kind"]), (rows[row["document"]]["id"], rows[row["document"]]["kind"]))
        packed = interp.run("export", "--site", "z.0", "--file", str(texts), "--pack", "--context", "8", out=self.dir / "packed")
        self.assertEqual(set(packed.frame["document"].to_pylist()), {0, 1})

    def test_every_frame_of_a_run_is_there(self):
        for command, wanted in (
            (("behave", "tiny-ioi", "--num-questions", "4"), {"frame", "questions"}),
            (("circuit", "find", "--pairs", "tiny-ioi", "--num-pairs", "8", "--edges", "20"), {"frame", "curve"}),
            (("perplexity", "--file", str(self._texts()), "--per-token"), {"frame", "tokens"}),
        ):
            run = interp.run(*command, out=self.dir / command[0])
            self.assertEqual(set(run.frames), wanted, command)
            self.assertEqual(list(run.frames)[0], "frame")
            for table in run.frames.values():
                self.assertGreater(table.num_rows, 0)

    def _texts(self):
        texts = self.dir / "many.txt"
        texts.write_text((PROMPT + "\n") * 8, encoding="utf-8")
        return texts

    def test_patterns_and_subspaces_are_arrays(self):
        run = interp.run("attention", "--layer", "1", "--prompt", PROMPT, "--prompt", "Mary and John", out=self.dir / "attention")
        arrays = run.arrays
        self.assertEqual(list(arrays), ["pattern.1"])
        pattern = arrays["pattern.1"]
        self.assertEqual(pattern.ndim, 4)
        for row in run.frame.to_pylist():
            self.assertEqual(pattern[row["prompt"], row["head"], row["query"], row["key"]], np.float32(row["weight"]))
        self.assertEqual(pattern[0, 0, 0, 1], 0.0)
        np.testing.assert_allclose(pattern[0].sum(-1), 1.0, atol=1e-5)
        self.assertTrue(np.isnan(pattern[1, 0, -1]).all(), "the second prompt is shorter")
        captured = interp.run("capture", "--site", "pattern.1,z.0,resid_post.2", "--prompt", PROMPT, out=self.dir / "capture")
        self.assertEqual(set(captured.arrays), {"pattern.1", "z.0", "resid_post.2"})
        np.testing.assert_allclose(captured.arrays["pattern.1"][0], pattern[0], atol=1e-6)
        wide = interp.run("capture", "--wide", "--site", "resid_post.2", "--prompt", PROMPT, out=self.dir / "wide")
        np.testing.assert_allclose(captured.arrays["resid_post.2"][0], wide.arrays["resid_post.2"], atol=1e-6)
        subspace = interp.run("subspace", "--pairs", "tiny-ioi", "--num-pairs", "8", "--template", "0", "--site", "resid_post.2", "--along", "means", out=self.dir / "subspace")
        self.assertEqual(set(subspace.arrays), {"basis"})
        np.testing.assert_allclose(np.linalg.norm(subspace.arrays["basis"], axis=1), 1.0, atol=1e-5)

    def test_listings_are_rows(self):
        models = interp.run("models", "list")
        self.assertIsInstance(models, interp.Listing)
        self.assertIn("gpt2", [row["name"] for row in models])
        self.assertEqual(models.frame.num_rows, len(models))
        for command in (("behave",), ("circuit", "list"), ("pairs",)):
            listing = interp.run(*command)
            self.assertIsInstance(listing, interp.Listing, command)
            self.assertTrue(listing and listing.frame.num_rows == len(listing), command)
        estimate = interp.run("export", "--site", "z.0", "--prompt", PROMPT, "--dry-run", out=self.dir / "nothing")
        self.assertGreater(estimate["rows"], 0)
        self.assertFalse((self.dir / "nothing").exists())

    def test_probes_and_directions_are_arrays(self):
        run = interp.run("probe", "train", "tiny-number", "--site", "resid_post.1", out=self.dir / "probe")
        captured = interp.run("capture", "--wide", "--site", "z.0", "--prompt", PROMPT, out=self.dir / "wide")
        self.assertEqual(set(captured.arrays), {"z.0"})
        self.assertTrue(run.arrays and all(np.isfinite(array).all() for array in run.arrays.values()))
        try:
            from safetensors.numpy import load_file
        except ImportError:
            return
        for name, array in load_file(self.dir / "probe" / "probes.safetensors").items():
            np.testing.assert_array_equal(run.arrays[name], array)

    def test_complaints_carry_the_exit_code(self):
        with self.assertRaisesRegex(interp.InterpError, "layer 9 is out of range") as caught:
            interp.run("attention", "--layer", "9", "--prompt", "x", out=self.dir / "bad")
        self.assertEqual(caught.exception.code, 2)
        with self.assertRaisesRegex(ValueError, "neither a run nor a dataset"):
            interp.load(self.dir)
        with self.assertRaises(FileNotFoundError):
            interp.load(self.dir / "nothing")
        with self.assertRaises(KeyError):
            texts = self.dir / "t.txt"
            texts.write_text("x y z\n", encoding="utf-8")
            interp.run("export", "--site", "embed", "--file", str(texts), out=self.dir / "d").arrays["z.9"]

    def test_frames_read_alike_in_polars_and_pandas(self):
        run = interp.run("predict", "--prompt", PROMPT, out=self.dir / "predict")
        wanted = pq.read_table(self.dir / "predict" / "frame.parquet").to_pydict()
        for name in ("polars", "pandas"):
            try:
                __import__(name)
            except ImportError:
                continue
            frame = getattr(run, name)()
            self.assertEqual([str(x) for x in frame["next"]], wanted["next"])


if __name__ == "__main__":
    unittest.main()
