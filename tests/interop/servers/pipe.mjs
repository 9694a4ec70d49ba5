// A server over stdio whose other end is a socket on loopback: `pipe.mjs PORT`. It lets a server of the tests' own process be a command.
import net from 'node:net';

const socket = net.connect(Number(process.argv[2]), '127.0.0.1');
socket.on('close', () => process.exit(0));
process.stdin.pipe(socket).pipe(process.stdout);
