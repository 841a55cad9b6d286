// Finds, queries and calls a service with NATS' own JavaScript client; prints the replies as JSON.
//
//   node nats-services.mjs URL SERVICE SUBJECT BODY

import { Svcm } from "@nats-io/services";
import { connect } from "@nats-io/transport-node";

const [url, service, subject, body] = process.argv.slice(2);
const connection = await connect({ servers: url });
const client = new Svcm(connection).client({ maxWait: 2000, maxMessages: 1 });

async function one(answers) {
  for await (const answer of await answers) return answer;
  throw new Error("no service answered");
}

const ping = await one(client.ping(service));
const info = await one(client.info(service, ping.id));
const reply = await connection.request(subject, body, { timeout: 10_000 });
const stats = await one(client.stats(service, ping.id));
console.log(
  JSON.stringify({
    ping,
    info,
    stats: { ...stats, started: new Date(stats.started).toISOString() },
    reply: reply.json(),
    headers: Object.fromEntries(reply.headers?.keys().map((key) => [key, reply.headers.get(key)]) ?? []),
  }),
);
await connection.close();
