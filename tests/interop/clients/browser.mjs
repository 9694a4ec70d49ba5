// What a browser does for a client that sends it to an authorization endpoint: follows the redirects with its cookies, up to
// the client's own redirect address, and hands back that address with its query.
export async function follow(start, redirectUrl) {
  const cookies = new Map();
  let next = new URL(start);
  for (let hop = 0; hop < 10; hop++) {
    if (next.href.startsWith(redirectUrl)) return next;
    const cookie = [...cookies].map(([name, value]) => `${name}=${value}`).join('; ');
    const response = await fetch(next, { redirect: 'manual', headers: cookie ? { cookie } : {} });
    for (const line of response.headers.getSetCookie()) {
      const [name, value] = line.split(';')[0].split(/=(.*)/s);
      cookies.set(name, value);
    }
    const location = response.headers.get('location');
    if (!location) throw new Error(`the issuer answered ${response.status}: ${(await response.text()).slice(0, 300)}`);
    next = new URL(location, next);
  }
  throw new Error('too many redirects');
}
