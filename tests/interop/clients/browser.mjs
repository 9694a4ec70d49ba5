// What a browser does for somebody who is sent to an issuer: follows the redirects with its cookies, fills in its forms, and hands back
// the address under `redirectUrl` where it ended, with its query, or the last page when it ended with one.
//
// As a script: browser.mjs START [REDIRECT] [--name NAME] prints that address, or `DONE` and the page's text. NAME is who logs in where a form asks.
import { parseArgs } from 'node:util';
import { pathToFileURL } from 'node:url';

const decoded = (text) => text.replace(/&quot;/g, '"').replace(/&#39;|&#x27;/g, "'").replace(/&lt;/g, '<').replace(/&gt;/g, '>').replace(/&amp;/g, '&');
const attribute = (tag, name) => {
  const found = tag.match(new RegExp(`\\s${name}\\s*=\\s*(?:"([^"]*)"|'([^']*)')`, 'i'));
  return found && decoded(found[1] ?? found[2]);
};

// The page's first form that is posted, filled in; undefined when there is none.
function form(page, address, name) {
  const [, head, body] = page.match(/<form\b([^>]*)>([^]*?)<\/form>/i) ?? [];
  if (head === undefined) return undefined;
  const fields = new URLSearchParams();
  for (const [tag] of body.matchAll(/<input\b[^>]*>/gi)) {
    const field = attribute(tag, 'name');
    if (field) fields.set(field, attribute(tag, 'value') ?? name);
  }
  return { target: new URL(attribute(head, 'action') ?? '', address), fields };
}

export async function visit(start, { redirectUrl, name = 'alice' } = {}) {
  const cookies = new Map();
  let [next, fields] = [new URL(start), undefined];
  for (let hop = 0; hop < 20; hop++) {
    if (redirectUrl && next.href.startsWith(redirectUrl)) return { address: next };
    const cookie = [...cookies].map(([key, value]) => `${key}=${value}`).join('; ');
    const response = await fetch(next, {
      redirect: 'manual',
      headers: cookie ? { cookie } : {},
      ...(fields && { method: 'POST', body: fields }),
    });
    for (const line of response.headers.getSetCookie()) {
      const [key, value] = line.split(';')[0].split(/=(.*)/s);
      if (value) cookies.set(key, value);
      else cookies.delete(key);
    }
    const location = response.headers.get('location');
    if (location) {
      [next, fields] = [new URL(location, next), undefined];
      continue;
    }
    const page = await response.text();
    const asked = response.ok && form(page, next, name);
    if (!asked) {
      const text = page.replace(/<style[^]*?<\/style>|<[^>]*>/gi, ' ').replace(/\s+/g, ' ').trim();
      if (!response.ok || redirectUrl) throw new Error(`the issuer answered ${response.status}: ${text.slice(0, 300)}`);
      return { text };
    }
    [next, fields] = [asked.target, asked.fields];
  }
  throw new Error('too many redirects');
}

export const follow = async (start, redirectUrl) => (await visit(start, { redirectUrl })).address;

if (import.meta.url === pathToFileURL(process.argv[1]).href) {
  const { values, positionals } = parseArgs({ allowPositionals: true, options: { name: { type: 'string' } } });
  const ended = await visit(positionals[0], { redirectUrl: positionals[1], name: values.name });
  console.log(ended.address?.href ?? `DONE ${ended.text}`);
}
