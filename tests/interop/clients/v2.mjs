// A client on npm SDK v2. `--mode auto` probes for 2026-07-28 first, `legacy` (that SDK's own default) shakes hands, and `modern`
// speaks 2026-07-28 or not at all.
import { Client, SSEClientTransport, StreamableHTTPClientTransport } from '@modelcontextprotocol/client';
import { StdioClientTransport } from '@modelcontextprotocol/client/stdio';
import { answers, Inbox, main, readOptions, watchedFetch } from './scenario.mjs';

const options = readOptions();
const { watched, first } = watchedFetch(options);
const inbox = new Inbox();
const settings = { fetch: watched, requestInit: { headers: options.headers } };

await main(options, first, inbox, async () => {
  const sse = options.transport === 'sse';
  const transports = {
    sse: () => new SSEClientTransport(options.url, settings),
    stdio: () => new StdioClientTransport({ command: options.url[0], args: options.url.slice(1) }),
    streamable: () => new StreamableHTTPClientTransport(options.url, settings),
  };
  const transport = transports[options.transport]();
  const mode = options.mode === 'modern' ? { pin: '2026-07-28' } : options.mode;
  const client = new Client(
    { name: 'v2', version: '1.0.0' },
    { capabilities: answers.capabilities, versionNegotiation: { mode: sse ? 'legacy' : mode } },
  );
  client.setRequestHandler('sampling/createMessage', answers.sampling);
  client.setRequestHandler('elicitation/create', answers.elicitation);
  client.setRequestHandler('roots/list', answers.roots);
  const changes = ['notifications/resources/list_changed', 'notifications/resources/updated'];
  for (const method of changes) client.setNotificationHandler(method, () => void inbox.methods.add(method));
  await client.connect(inbox.watch(transport));
  const protocol = client.getNegotiatedProtocolVersion();
  const modern = protocol >= '2026-07-28';
  const lists = {
    tools: (params) => client.listTools(params),
    resources: (params) => client.listResources(params),
    templates: (params) => client.listResourceTemplates(params),
    prompts: (params) => client.listPrompts(params),
  };
  const sdk = {
    list: (kind, cursor) => lists[kind](cursor ? { cursor } : undefined),
    call: (name, args, extra) => client.callTool({ name, arguments: args }, extra),
    read: (uri) => client.readResource({ uri }),
    prompt: (name, args) => client.getPrompt({ name, arguments: args }),
    async changes() {
      const filter = { resourcesListChanged: true, resourceSubscriptions: ['memo://greeting'] };
      if (!modern && client.getServerCapabilities().resources?.subscribe) await client.subscribeResource({ uri: 'memo://greeting' });
      const subscription = modern ? await client.listen(filter) : undefined;
      await client.callTool({ name: 'touch', arguments: {} });
      const seen = await inbox.waitFor(...changes);
      await subscription?.close();
      return seen;
    },
    async end() {
      if (options.transport === 'streamable' && !modern) await transport.terminateSession();
      await client.close();
    },
  };
  const told = {
    protocol,
    server: client.getServerVersion()?.name ?? 'not offered',
    capabilities: Object.keys(client.getServerCapabilities()).sort(),
  };
  return { told, sdk };
});
