"""The reader against pyarrow, polars and the command line's own JSON."""

import json
import subprocess
import tempfile
import unittest
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

import interp
from interp import binary

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
        with self.assertRaisesRegex(ValueError, "sha256 is"):
            interp.load(self.dir / "data").verify()

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
