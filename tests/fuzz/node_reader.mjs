// Node's HTTP server as a reader of recorded bytes: one line of base64 in, one line of JSON out, in order.
import http from 'node:http';
import readline from 'node:readline';
import { Duplex } from 'node:stream';

function read(data) {
  return new Promise((resolve) => {
    const requests = [];
    let error = null;
    const server = http.createServer({ requestTimeout: 0, headersTimeout: 0, maxHeaderSize: 1 << 20 });
    server.httpAllowHalfOpen = true; // what was asked before the end is answered
    const take = (request, response) => {
      const parts = [];
      request.on('data', (part) => parts.push(part));
      request.on('end', () => {
        requests.push({
          method: request.method,
          target: request.url,
          fields: request.rawHeaders,
          body: Buffer.concat(parts).toString('base64'),
          trailers: request.rawTrailers,
        });
        response.end('ok');
      });
    };
    for (const event of ['request', 'checkContinue', 'checkExpectation']) server.on(event, take);
    server.on('connect', () => { error = 'CONNECT'; });
    server.on('upgrade', () => { error = 'UPGRADE'; });
    server.on('clientError', (reason, socket) => {
      error = reason.code ?? String(reason);
      socket.destroy();
    });
    const socket = new Duplex({
      read() {},
      write(chunk, encoding, done) { done(); },
      final(done) { done(); },
    });
    socket.on('error', () => {});
    socket.on('close', () => resolve({ requests, error }));
    server.emit('connection', socket);
    socket.push(data);
    // What is not complete is an error at the end, and takes with it what is not answered yet: first let that be done.
    let seen = -1;
    let still = 0;
    const end = () => {
      still = requests.length === seen ? still + 1 : 0;
      seen = requests.length;
      if (still < 5) setImmediate(end);
      else socket.push(null);
    };
    end();
  });
}

for await (const line of readline.createInterface({ input: process.stdin })) {
  process.stdout.write(JSON.stringify(await read(Buffer.from(line, 'base64'))) + '\n');
}
