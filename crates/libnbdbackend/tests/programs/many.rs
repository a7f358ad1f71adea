//! One process that serves many devices.

use nbd_proto::{CommandType, NbdError};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::compile::{Program, compile, examples, printed};
use crate::holder::{Directory, Holder, request};

const DEVICES: u32 = 256;
const SIZE: u64 = 1 << 20;

/// The holders of many devices, and the command of a daemon that serves all.
fn daemon(directory: &Directory, count: u32) -> (Vec<Holder>, Vec<String>) {
    // Each device has descriptors in this process as well.
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let program = compile("cc", &examples().join("c/async_epoll.c"), directory);
    let mut command = vec![program.display().to_string()];
    let holders = (0..count).map(|index| {
        directory.file(&format!("{index}.img"), SIZE);
        command.push(format!("nbd{index}={index}.img"));
        Holder::new(directory, index)
    });
    (holders.collect(), command)
}

#[test]
fn a_daemon_of_256_devices_is_killed_with_requests_in_flight_and_all_go_on() {
    let directory = Directory::new();
    let (mut holders, command) = daemon(&directory, DEVICES);
    let program = Program::start(&directory, &command, &[]);
    for (index, holder) in holders.iter_mut().enumerate() {
        assert_eq!(holder.serve(), 0);
        holder.write(0, &[index as u8; 4096]);
    }
    // As docs/reference/libnbdbackend.md has it: one thread a device, and so many descriptors.
    let (threads, descriptors) = (program.count("task"), program.count("fd"));
    assert_eq!(threads, DEVICES as usize + 1);
    assert!(descriptors <= DEVICES as usize * 3 + 16, "{descriptors} descriptors");
    println!("{threads} threads, {descriptors} descriptors");
    // The load is under way when it is killed: of these some are answered, and some are not.
    for holder in &mut holders {
        for block in 1..5 {
            holder.send(request(CommandType::WRITE, block * 4096, 4096), &[block as u8; 4096]);
        }
    }
    program.kill();
    let program = Program::start(&directory, &command, &[]);
    for (index, holder) in holders.iter_mut().enumerate() {
        holder.serve();
        let mut cookies: Vec<_> = (0..4).map(|_| holder.reply()).collect();
        cookies.sort_unstable_by_key(|(cookie, _)| *cookie);
        let expected = [4096, 8192, 12288, 16384].map(|offset| (offset, NbdError::SUCCESS));
        assert_eq!(cookies, expected, "nbd{index}");
        assert_eq!(holder.read(0, 4096), vec![index as u8; 4096], "nbd{index}");
        assert_eq!(holder.read(16384, 4096), [4; 4096], "nbd{index}");
    }
    for holder in &mut holders {
        holder.disconnect();
        holder.is_left();
    }
    assert!(program.end().success(), "{}", printed(&directory));
}

#[test]
fn one_device_is_detached_and_the_daemon_serves_the_others() {
    let directory = Directory::new();
    let (mut holders, command) = daemon(&directory, 3);
    let mut program = Program::start(&directory, &command, &[]);
    holders.iter_mut().for_each(|holder| assert_eq!(holder.serve(), 0));
    let mut first = holders.remove(0);
    first.disconnect();
    first.is_left();
    for holder in &mut holders {
        holder.write(0, &[3; 512]);
    }
    assert!(program.is_running());
    for holder in &mut holders {
        holder.disconnect();
        holder.is_left();
    }
    assert!(program.end().success(), "{}", printed(&directory));
}

#[test]
fn a_new_daemon_examines_all_devices_before_it_takes_over_any() {
    let directory = Directory::new();
    let (mut holders, command) = daemon(&directory, 16);
    let blue = Program::start(&directory, &command, &[]);
    holders.iter_mut().for_each(|holder| assert_eq!(holder.serve(), 0));
    holders.iter_mut().for_each(|holder| holder.write(0, &[1; 512]));
    let mut command = command;
    command.insert(1, "--takeover".into());
    let green = Program::start(&directory, &command, &[]);
    // All have to answer what is stored before any is asked for the lanes.
    for index in 0..holders.len() {
        holders[index].is_asked();
        assert!(holders[..index].iter_mut().all(Holder::is_silent));
        holders[index].show();
    }
    assert!(holders.iter_mut().all(|holder| holder.hello().takeover));
    blue.kill();
    for holder in &mut holders {
        assert_eq!(holder.grant(), Ok(0));
        assert_eq!(holder.read(0, 512), [1; 512]);
        holder.disconnect();
        holder.is_left();
    }
    assert!(green.end().success(), "{}", printed(&directory));
}
