// A client on npm SDK v1, over Streamable HTTP, HTTP+SSE or stdio.
import { setTimeout as sleep } from 'node:timers/promises';
import { Client } from '@modelcontextprotocol/sdk/client/index.js';
import { SSEClientTransport } from '@modelcontextprotocol/sdk/client/sse.js';
import { StdioClientTransport } from '@modelcontextprotocol/sdk/client/stdio.js';
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js';
import {
  CallToolResultSchema,
  CreateMessageRequestSchema,
  ElicitRequestSchema,
  ListRootsRequestSchema,
  ResourceListChangedNotificationSchema,
  ResourceUpdatedNotificationSchema,
} from '@modelcontextprotocol/sdk/types.js';
import { answers, Inbox, main, readOptions, watchedFetch } from './scenario.mjs';

const options = readOptions();
const { watched, first } = watchedFetch(options);
const inbox = new Inbox();
const settings = { fetch: watched, requestInit: { headers: options.headers } };

function newClient() {
  const client = new Client({ name: 'v1', version: '1.0.0' }, { capabilities: answers.capabilities });
  client.setRequestHandler(CreateMessageRequestSchema, answers.sampling);
  client.setRequestHandler(ElicitRequestSchema, answers.elicitation);
  client.setRequestHandler(ListRootsRequestSchema, answers.roots);
  for (const schema of [ResourceListChangedNotificationSchema, ResourceUpdatedNotificationSchema])
    client.setNotificationHandler(schema, (notification) => void inbox.methods.add(notification.method));
  return client;
}

await main(options, first, inbox, async () => {
  const streamable = options.transport === 'streamable';
  const transports = {
    sse: () => new SSEClientTransport(options.url, settings),
    stdio: () => new StdioClientTransport({ command: options.url[0], args: options.url.slice(1) }),
    streamable: () => new StreamableHTTPClientTransport(options.url, settings),
  };
  const transport = transports[options.transport]();
  const client = newClient();
  await client.connect(inbox.watch(transport));
  const lists = {
    tools: (params) => client.listTools(params),
    resources: (params) => client.listResources(params),
    templates: (params) => client.listResourceTemplates(params),
    prompts: (params) => client.listPrompts(params),
  };
  const sdk = {
    list: (kind, cursor) => lists[kind](cursor ? { cursor } : undefined),
    call: (name, args, extra) => client.callTool({ name, arguments: args }, undefined, extra),
    read: (uri) => client.readResource({ uri }),
    prompt: (name, args) => client.getPrompt({ name, arguments: args }),
    async changes() {
      if (client.getServerCapabilities().resources?.subscribe) await client.subscribeResource({ uri: 'memo://greeting' });
      await client.callTool({ name: 'touch', arguments: {} });
      return inbox.waitFor('notifications/resources/list_changed', 'notifications/resources/updated');
    },
    async end() {
      if (streamable) await transport.terminateSession();
      await client.close();
    },
  };
  if (streamable) {
    // Starts a call, loses the connection in the middle, and fetches the answer over another one of the same session.
    sdk.resume = async (name, args) => {
      const join = () => {
        const again = new StreamableHTTPClientTransport(options.url, { ...settings, sessionId: transport.sessionId });
        again.setProtocolVersion(transport.protocolVersion);
        return again;
      };
      const request = { method: 'tools/call', params: { name, arguments: args } };
      const lost = newClient();
      await lost.connect(join());
      const token = await new Promise((resolve, reject) => {
        let seen;
        lost
          .request(request, CallToolResultSchema, { onresumptiontoken: (id) => (seen = id), onprogress: () => resolve(seen) })
          .catch(reject);
      });
      await lost.close();
      // server-everything replays what it stored and then leaves the stream silent, so the call must be over by now.
      await sleep(1500);
      const back = newClient();
      await back.connect(join());
      try {
        return await back.request(request, CallToolResultSchema, { resumptionToken: token });
      } finally {
        await back.close();
      }
    };
  }
  const told = {
    protocol: transport.protocolVersion ?? transport._protocolVersion,
    server: client.getServerVersion().name,
    capabilities: Object.keys(client.getServerCapabilities()).sort(),
  };
  return { told, sdk };
});
