// A hop that ends TLS and goes on in plain text, as load balancers and ingresses do. Prints `PORT n`; the port of the server
// behind it, on 127.0.0.1, is the first line on stdin, since that server may have to know this port first.
//
// `--certificate F --key F`, PEM. `--tells` is what it says of the client:
//   nothing        bytes pass as they came, Host and all
//   proxy          the same, behind a PROXY protocol header, version 2
//   x-forwarded    X-Forwarded-For, -Host, -Proto and -Port; Host is the server's own, as nginx has it unless told otherwise
//   forwarded      the same in Forwarded (RFC 7239)
import { readFileSync } from 'node:fs';
import { request as forward } from 'node:http';
import { createServer as createHttps } from 'node:https';
import { connect } from 'node:net';
import { createInterface } from 'node:readline';
import { createServer as createTls } from 'node:tls';
import { parseArgs } from 'node:util';

const { values } = parseArgs({
  options: { certificate: { type: 'string' }, key: { type: 'string' }, tells: { type: 'string', default: 'nothing' } },
});
const credentials = { cert: readFileSync(values.certificate), key: readFileSync(values.key) };
let behind;

// "The PROXY protocol", section 2.2: a connection over IPv4.
function proxyHeader({ remoteAddress, remotePort, localAddress, localPort }) {
  const octets = (address) => address.replace('::ffff:', '').split('.').map(Number);
  const ports = Buffer.alloc(4);
  ports.writeUInt16BE(remotePort, 0);
  ports.writeUInt16BE(localPort, 2);
  const signature = Buffer.from('0d0a0d0a000d0a515549540a', 'hex');
  return Buffer.concat([signature, Buffer.from([0x21, 0x11, 0, 12, ...octets(remoteAddress), ...octets(localAddress)]), ports]);
}

function pipe(socket) {
  const onward = connect(behind, '127.0.0.1', () => {
    if (values.tells === 'proxy') onward.write(proxyHeader(socket));
    socket.pipe(onward).pipe(socket);
  });
  for (const [end, other] of [[socket, onward], [onward, socket]]) {
    end.on('error', () => other.destroy());
    end.on('close', () => other.destroy());
  }
}

const HOP_BY_HOP = ['connection', 'keep-alive', 'te', 'trailer', 'transfer-encoding', 'upgrade', 'proxy-connection'];

// What the client claims of itself goes, and what is true comes instead.
function told({ headers, socket }) {
  const kept = Object.entries(headers).filter(([name]) => name !== 'forwarded' && !name.startsWith('x-forwarded-') && !HOP_BY_HOP.includes(name));
  const client = socket.remoteAddress.replace('::ffff:', '');
  const port = headers.host.split(':')[1] ?? '443';
  const tells =
    values.tells === 'forwarded'
      ? { forwarded: `for=${client};host="${headers.host}";proto=https` }
      : { 'x-forwarded-for': client, 'x-forwarded-host': headers.host, 'x-forwarded-proto': 'https', 'x-forwarded-port': port };
  return { ...Object.fromEntries(kept), ...tells, host: `127.0.0.1:${behind}` };
}

function relay(request, response) {
  const { method, url: path } = request;
  const onward = forward({ host: '127.0.0.1', port: behind, method, path, headers: told(request) }, (answer) => {
    const kept = answer.rawHeaders.filter((_, at) => !HOP_BY_HOP.includes(answer.rawHeaders[at - (at % 2)].toLowerCase()));
    response.writeHead(answer.statusCode, kept);
    // The head goes at once: an event stream may say nothing for a while.
    response.flushHeaders();
    answer.pipe(response);
    answer.on('error', () => response.destroy());
  });
  onward.on('error', () => response.destroy());
  response.on('close', () => onward.destroy());
  request.pipe(onward);
}

const pipes = ['nothing', 'proxy'].includes(values.tells);
const server = pipes ? createTls(credentials, pipe) : createHttps(credentials, relay);
server.listen(0, '127.0.0.1', () => process.stdout.write(`PORT ${server.address().port}\n`));
createInterface({ input: process.stdin }).once('line', (line) => (behind = Number(line)));
