// One model: load it, feed X, give Y back.  Shared by Node and the page.
//
// source: the model's bytes, or its address.

export async function runJob(ort, provider, job, source) {
  try {
    const session = await ort.InferenceSession.create(source, { executionProviders: [provider] });
    const { Y } = await session.run({ X: new ort.Tensor("float32", job.data, job.dims) });
    return { dims: Y.dims, data: Array.from(Y.data) };
  } catch (error) {
    return { error: String(error) };
  }
}
