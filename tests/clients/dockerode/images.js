"use strict";
// What the tests do by dockerode: `node images.js SOCKET OPERATION ARGUMENT…` prints its answer.

const Docker = require("dockerode");

const [socketPath, operation, ...given] = process.argv.slice(2);
const docker = new Docker({ socketPath });
const NOBODY = {}; // without a login; the engine wants to be told so

const followed = (stream) =>
  new Promise((resolve, reject) => {
    docker.modem.followProgress(stream, (error, events) => {
      const failed = error ?? events.find((event) => event.error)?.error;
      failed ? reject(failed) : resolve(events);
    });
  });

const operations = {
  load: async (path) => followed(await docker.loadImage(path)),
  push: async (name) => followed(await docker.getImage(name).push({ authconfig: NOBODY })),
  pull: async (name, platform) => followed(await docker.pull(name, { platform })),
  tag: (name, repo, tag) => docker.getImage(name).tag({ repo, tag }),
  inspect: (name) => docker.getImage(name).inspect(),
  distribution: (name) => docker.getImage(name).distribution(),
  remove: (name) => docker.getImage(name).remove({ force: true }),
};

operations[operation](...given).then(
  (answer) => process.stdout.write(JSON.stringify(answer ?? null)),
  (error) => {
    process.stderr.write(`${error.message ?? error}\n`);
    process.exitCode = 1;
  },
);
