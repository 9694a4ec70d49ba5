// npm SDK v2 at /mcp: 2026-07-28, answered as one JSON body unless a call reports progress; the handshake era without sessions,
// so that GET and DELETE are 405 and nothing can be asked of the client or cancelled there.
import { createServer } from 'node:http';
import { setTimeout as sleep } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import { localhostHostValidation, toNodeHandler } from '@modelcontextprotocol/node';
import { acceptedContent, createMcpHandler, inputRequired, McpServer, ResourceTemplate } from '@modelcontextprotocol/server';
import { z } from 'zod';

const { values } = parseArgs({ options: { port: { type: 'string', default: '0' } } });
const text = (value) => ({ content: [{ type: 'text', text: String(value) }] });
const nameSchema = z.object({ name: z.string() });
const cancelled = [];

const progress = async (ctx, step, total) => {
  const progressToken = ctx.mcpReq._meta?.progressToken;
  if (progressToken === undefined) return;
  await ctx.mcpReq.notify({ method: 'notifications/progress', params: { progressToken, progress: step, total } });
};

function build({ era }) {
  const server = new McpServer({ name: 'v2', version: '1.0.0' }, { capabilities: { resources: { listChanged: true, subscribe: true } } });
  const tool = (name, inputSchema, run) => server.registerTool(name, { description: name, inputSchema: z.object(inputSchema) }, run);

  tool('add', { a: z.number().int(), b: z.number().int() }, ({ a, b }) => text(a + b));
  tool('slow_count', { n: z.number().int() }, async ({ n }, ctx) => {
    for (let step = 1; step <= n; step++) {
      await sleep(20);
      await progress(ctx, step, n);
    }
    return text(`counted to ${n}`);
  });
  tool('fail', {}, () => ({ ...text('this tool always fails'), isError: true }));
  if (era === 'modern') {
    tool('touch', {}, () => {
      handler.notify.resourceUpdated('memo://greeting');
      handler.notify.resourcesChanged();
      return text('touched');
    });
    tool('wait_forever', {}, async (_args, ctx) => {
      await progress(ctx, 1, 2);
      await sleep(60_000, undefined, { signal: ctx.mcpReq.signal }).catch(() => cancelled.push('wait_forever'));
      return text('nobody cancelled');
    });
    tool('was_cancelled', {}, () => text(cancelled.splice(0).length > 0));
    tool('elicit_name', {}, (_args, ctx) => {
      const answer = acceptedContent(ctx.mcpReq.inputResponses, 'who', nameSchema);
      if (answer) return text(`hello ${answer.name}`);
      const who = inputRequired.elicit({ message: 'What is your name?', requestedSchema: nameSchema });
      return inputRequired({ inputRequests: { who } });
    });
    tool('sample', { prompt: z.string() }, ({ prompt }, ctx) => {
      const answer = ctx.mcpReq.inputResponses?.answer;
      if (answer) return text(`${answer.model}: ${answer.content.text}`);
      const messages = [{ role: 'user', content: { type: 'text', text: prompt } }];
      return inputRequired({ inputRequests: { answer: inputRequired.createMessage({ messages, maxTokens: 50 }) } });
    });
  }

  const plain = { mimeType: 'text/plain' };
  server.registerResource('greeting', 'memo://greeting', plain, (uri) => ({ contents: [{ uri: uri.href, text: 'hello from v2' }] }));
  server.registerResource('note', new ResourceTemplate('memo://note/{name}', { list: undefined }), plain, (uri, { name }) => ({
    contents: [{ uri: uri.href, text: `note ${name}` }],
  }));
  server.registerPrompt('greet', { argsSchema: nameSchema }, ({ name }) => ({
    messages: [{ role: 'user', content: { type: 'text', text: `Please greet ${name}.` } }],
  }));
  return server;
}

const handler = createMcpHandler(build, { onerror: (error) => console.error(error.message) });
const serve = toNodeHandler(handler);
const validHost = localhostHostValidation();
const server = createServer((request, response) => {
  if (!validHost(request, response)) return;
  if (new URL(request.url, 'http://localhost').pathname !== '/mcp') return void response.writeHead(404).end();
  return serve(request, response);
});
server.listen(Number(values.port), '127.0.0.1', () => process.stdout.write(`PORT ${server.address().port}\n`));
