// Audit one model from JavaScript: ask, follow the progress, read the report.
//
//   npm install
//   node audit.js --address 127.0.0.1:50051 --subject testbed/uce --concept hourglass
//
// The messages come from the contracts in protos/; nothing is generated. With TLS and tokens, set UNERASE_TLS_CA and
// UNERASE_TOKEN.

import { randomUUID } from "node:crypto";
import { readFileSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

import grpc from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";

const PROTOS = fileURLToPath(new URL("../../protos", import.meta.url));
// Field names as in the contracts; 64-bit integers as strings, since a seed base does not fit a number.
const OPTIONS = { keepCase: true, longs: String, enums: String, defaults: true, oneofs: true, includeDirs: [PROTOS] };
const MOST_BYTES = 64 * 1024 * 1024;
const ENDED = ["AUDIT_STATE_SUCCEEDED", "AUDIT_STATE_FAILED", "AUDIT_STATE_CANCELLED"];
// Codes after which watching goes on where it stopped.
const BROKEN = [grpc.status.UNAVAILABLE, grpc.status.INTERNAL, grpc.status.UNKNOWN];
const ATTEMPTS = 10;

const { values: options } = parseArgs({
  options: {
    address: { type: "string", default: process.env.UNERASE_ADDRESS ?? "127.0.0.1:50051" },
    subject: { type: "string", default: "testbed/uce" },
    concept: { type: "string", default: "hourglass" },
    cases: { type: "string", default: "24" },
    report: { type: "string", default: "report.json" },
  },
});

/** A client of AuditService. */
function connect() {
  const { unerase } = grpc.loadPackageDefinition(loadSync("unerase/v1/audits.proto", OPTIONS));
  const authorities = process.env.UNERASE_TLS_CA;
  const credentials = authorities
    ? grpc.credentials.createSsl(readFileSync(authorities))
    : grpc.credentials.createInsecure();
  return new unerase.v1.AuditService(options.address, credentials, { "grpc.max_receive_message_length": MOST_BYTES });
}

/** What every call carries. */
function metadata() {
  const carried = new grpc.Metadata();
  // A token is sent over TLS alone.
  if (process.env.UNERASE_TOKEN && process.env.UNERASE_TLS_CA) {
    carried.set("authorization", `Bearer ${process.env.UNERASE_TOKEN}`);
  }
  return carried;
}

/** The answer of a call with one answer. */
function ask(client, method, request) {
  return new Promise((resolve, reject) => {
    const deadline = Date.now() + 30_000;
    client[method](request, metadata(), { deadline }, (error, answer) => (error ? reject(error) : resolve(answer)));
  });
}

/** The audit once it has ended. Every event comes once and in order, over as many connections as it takes. */
async function watch(client, id, onEvent) {
  let sequence = "0";
  for (let attempt = 0; attempt < ATTEMPTS; attempt += 1) {
    let idle = true;
    let ended = false;
    try {
      for await (const event of client.WatchAudit({ id, after_sequence: sequence }, metadata())) {
        sequence = event.sequence;
        idle = false;
        attempt = 0;
        ended = ENDED.includes(event.state_changed?.state);
        onEvent(event);
      }
      // A stream that begins after the last event is empty: only the state itself says that the audit has ended.
      if (ended || idle) {
        const audit = await ask(client, "GetAudit", { id });
        if (ENDED.includes(audit.state)) return audit;
      }
    } catch (error) {
      if (!BROKEN.includes(error.code)) throw error;
    }
    await new Promise((resolve) => setTimeout(resolve, 500));
  }
  throw new Error(`audit ${id}: the backend does not answer`);
}

/** The report's JSON. */
async function report(client, id) {
  const pieces = [];
  let size = 0;
  for await (const piece of client.GetReport({ id, format: "REPORT_FORMAT_JSON" }, metadata())) {
    if (pieces.length === 0) size = Number(piece.size_bytes);
    pieces.push(piece.chunk);
  }
  const content = Buffer.concat(pieces);
  if (content.length !== size) throw new Error(`${content.length} bytes of the report arrived instead of ${size}`);
  return content;
}

async function main() {
  const client = connect();
  const spec = {
    subject: options.subject,
    concept: options.concept,
    // A complete verdict needs more evaluations. Without them, the verdict says which are missing.
    battery: { evaluations: [{ name: "standard-prompt" }, { name: "diffusion-completion" }], allow_incomplete: true },
    cases: Number(options.cases),
    steps: 10,
    seed_base: "7",
  };
  // The same request id gives the same audit, so that the call may be repeated.
  const accepted = await ask(client, "CreateAudit", { request_id: randomUUID(), spec });
  console.log(`audit ${accepted.id}`);
  const audit = await watch(client, accepted.id, ({ unit_done: done }) => {
    if (done) console.log(`${done.unit}: ${done.detected} of ${done.observations} pictures show it`);
  });
  if (audit.state !== "AUDIT_STATE_SUCCEEDED") {
    throw new Error(`audit ${audit.id} did not succeed: ${audit.error_message}`);
  }
  writeFileSync(options.report, await report(client, audit.id));
  console.log(audit.verdict.summary || audit.verdict.statement);
  for (const { title, subject } of audit.verdict.evaluations) {
    console.log(`${title}: ${subject.hits} of ${subject.cases} cases`);
  }
  console.log(`The report is in ${options.report}`);
  client.close();
}

main().catch((error) => {
  // The reason, for machines, is in the details of google.rpc.Status.
  console.error(error.details || error.message);
  process.exitCode = 1;
});
