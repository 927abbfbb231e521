// Runs models in onnxruntime-node, or in onnxruntime-web's wasm under Node.
//
//   node node.mjs <onnxruntime-node | onnxruntime-web> <jobs.json> <results.json>
//
// jobs: [{file, dims, data}], data fed to the input X.  results: [{dims, data} | {error}] of Y.

import { readFile, writeFile } from "node:fs/promises";
import { runJob } from "./job.mjs";

const [, , name, jobsPath, resultsPath] = process.argv;
const ort = await import(name);
ort.env.logLevel = "error";
ort.env.wasm.numThreads = 1;

const provider = name === "onnxruntime-node" ? "cpu" : "wasm";
const results = [];
for (const job of JSON.parse(await readFile(jobsPath, "utf8"))) {
  results.push(await runJob(ort, provider, job, new Uint8Array(await readFile(job.file))));
}
await writeFile(resultsPath, JSON.stringify(results));
