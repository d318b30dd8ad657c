//! A web server for the files of one folder on this machine, which takes what the page posts.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;

use anyhow::Context;

/// Posts are shorter than this.
const MOST_BODY_BYTES: u64 = 64 << 20;

/// A server that is bound to its port.
pub struct Server {
    listener: TcpListener,
    files: HashMap<String, (&'static str, Vec<u8>)>,
}

impl Server {
    /// A server for the files of a folder. Port 0 is any free one.
    pub fn new(folder: &Path, port: u16) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))
            .with_context(|| format!("could not listen on port {port} (--port chooses another one)"))?;
        let mut files = HashMap::new();
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            let (Some(name), Some(kind)) = (path.file_name().and_then(|name| name.to_str()), kind_of(&path))
            else {
                continue;
            };
            files.insert(format!("/{name}"), (kind, std::fs::read(&path)?));
        }
        if let Some(index) = files.get("/index.html").cloned() {
            files.insert("/".into(), index);
        }
        Ok(Self { listener, files })
    }

    /// The address of the page.
    pub fn address(&self) -> String {
        let port = self.listener.local_addr().map_or(0, |address| address.port());
        format!("http://localhost:{port}/")
    }

    /// Serves until the program ends. `post` gets the first line of what is posted to `/report`, and the rest.
    pub fn serve(self, post: impl Fn(&str, &str) + Sync) -> anyhow::Result<()> {
        std::thread::scope(|scope| {
            for connection in self.listener.incoming() {
                let (connection, server, post) = (connection?, &self, &post);
                scope.spawn(move || {
                    // A browser that has gone needs no answer.
                    let _ = server.answer(connection, post);
                });
            }
            Ok(())
        })
    }

    fn answer(&self, connection: TcpStream, post: &(impl Fn(&str, &str) + Sync)) -> std::io::Result<()> {
        let mut writer = connection.try_clone()?;
        let mut reader = BufReader::new(connection);
        let mut request = String::new();
        reader.read_line(&mut request)?;
        let mut length = 0;
        loop {
            let mut header = String::new();
            reader.read_line(&mut header)?;
            match header.trim().split_once(':') {
                Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                    length = value.trim().parse().unwrap_or(0);
                }
                Some(_) => {}
                None => break,
            }
        }
        let mut words = request.split_whitespace();
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let path = target.split('?').next().unwrap_or_default();
        let (status, kind, content): (_, &str, &[u8]) = match (method, self.files.get(path)) {
            ("GET", Some((kind, content))) => ("200 OK", kind, content),
            ("POST", None) if path == "/report" => {
                let mut body = String::new();
                reader.take(MOST_BODY_BYTES.min(length)).read_to_string(&mut body)?;
                let (first, rest) = body.split_once('\n').unwrap_or((&body, ""));
                post(first, rest);
                ("204 No Content", "text/plain", b"")
            }
            _ => ("404 Not Found", "text/plain", b"not found"),
        };
        write!(
            writer,
            "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n",
            content.len()
        )?;
        writer.write_all(content)
    }
}

fn kind_of(path: &Path) -> Option<&'static str> {
    Some(match path.extension()?.to_str()? {
        "html" => "text/html; charset=utf-8",
        "css" => "text/css",
        "js" => "text/javascript",
        "wasm" => "application/wasm",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    fn ask(address: &str, request: &str) -> String {
        let host = address.trim_start_matches("http://").trim_end_matches('/');
        let mut connection = TcpStream::connect(host).unwrap();
        connection.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn files_are_served_and_posts_are_taken() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("index.html"), "<p>page").unwrap();
        std::fs::write(folder.path().join("secret.txt"), "secret").unwrap();
        let server = Server::new(folder.path(), 0).unwrap();
        let address = server.address();
        let (sender, posts) = mpsc::channel();
        std::thread::spawn(move || {
            server.serve(move |kind, json| sender.send((kind.to_owned(), json.to_owned())).unwrap())
        });
        for path in ["/", "/index.html?x=1"] {
            let answer = ask(&address, &format!("GET {path} HTTP/1.1\r\n\r\n"));
            assert!(
                answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\n<p>page"),
                "{answer}"
            );
        }
        for path in ["/secret.txt", "/../main.rs", "/report"] {
            assert!(
                ask(&address, &format!("GET {path} HTTP/1.1\r\n\r\n")).starts_with("HTTP/1.1 404"),
                "{path}"
            );
        }
        ask(&address, "POST /report HTTP/1.1\r\ncontent-length: 8\r\n\r\ndone\n[1]");
        assert_eq!(posts.recv().unwrap(), ("done".to_owned(), "[1]".to_owned()));
    }
}
