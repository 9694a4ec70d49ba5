// npm server-everything on loopback: `--mode streamable` serves /mcp, `--mode sse` serves /sse and /message.
// The package binds every address and prints no port, so listen() is steered here.
import net from 'node:net';
import { parseArgs } from 'node:util';

const { values } = parseArgs({
  options: { mode: { type: 'string', default: 'streamable' }, port: { type: 'string', default: '0' } },
});

const listen = net.Server.prototype.listen;
net.Server.prototype.listen = function (port, ...rest) {
  this.once('listening', () => process.stdout.write(`PORT ${this.address().port}\n`));
  return listen.call(this, Number(port), '127.0.0.1', ...rest.filter((value) => typeof value === 'function'));
};
process.env.PORT = values.port;
console.log = console.error;
const entry = values.mode === 'sse' ? 'sse' : 'streamableHttp';
await import(`./../node_modules/@modelcontextprotocol/server-everything/dist/transports/${entry}.js`);
